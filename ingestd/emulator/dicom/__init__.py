"""DICOM itself, as the service reads it: elements, values, rules, transfer syntaxes; no index, no HTTP."""
