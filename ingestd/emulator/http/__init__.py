"""HTTP as the original speaks it: connections, requests and their routes, answers, Accept, multipart bodies."""
