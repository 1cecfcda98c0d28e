"""ingestd takes DICOM files from watched folders to a DICOMweb server and proves that they arrived.

    modality -> drop/ -> inbox -> spool/ + ledger row PENDING
                          | proven not whole, or not DICOM  -> REJECTED (reason, in words)
                          | same identity, same content     -> DUPLICATE of the row that holds it
                          | same identity, other content    -> CONFLICT, both kept for a person
    ledger -> a study is due -> claim -> SENDING -> sender -> POST /studies
                                          |- listed as stored -> STORED -> reconciler -> CONFIRMED
                                          |- proven not sent  -> PENDING, tried again later
                                          |- outcome unread   -> UNCERTAIN -> reconciler asks the server
                                          '- refused for good -> the server is asked, then FAILED, file kept

The rooms, lowest first; each imports only from those before it (``tests/test_imports.py`` holds this). ``DESIGN.md``
says why they are so, what is promised and what keeps it, and where a change belongs:

    layer 0   lifecycle   what states and moves there are; pure rules
              clocks threads workers locks error_location sameness   tools
              fs          durable files on Linux: synced, reached through no link, asked for writers
              instance    what a DICOM file is: read, check, digest
              config      YAML -> one frozen Config
              logs        how lines are written, how often, and what may never stand in one
              dicomweb    the client: HTTP and PS3.18; useful by itself
              emulator    an Azure DICOM service for tests, demos and first minutes
    layer 1   inbox       drop folder -> spool
              ledger      every SQL statement, one function per move
              outages     which failed requests concern the server as a whole
              sender      a batch -> one Store Transaction -> one outcome per instance
              reconciler  change feed or query -> confirmed, deleted, or back to pending
    layer 2   reader      supervised child processes, the only callers of instance
    layer 3   daemon      the loop that joins them: take in, send, reconcile, wait
    layer 4   cli         the commands
"""

__version__ = "0.1.0"
