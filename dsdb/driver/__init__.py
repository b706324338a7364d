"""The Python driver (PEP 249): blocking sockets, one session a connection, Arrow where asked for.

    connect ▸ connection ▸ cursor ▸ results        what users hold
    wire                                           one socket: messages out, messages in
    adapt, values                                  Python's values to the wire's and back
    errors, typeobjects                            PEP 249's names

Speaks `dsdb.protocol` only; an embedded node is imported when one is asked for.
"""
