"""The words between a gateway and a range: ids, descriptors, requests, replies and errors.  Data only; no behaviour, no I/O."""
