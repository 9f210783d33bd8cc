"""The CNI plugin: what container runtimes call to plug a container into this node's subnet.

A runtime starts it anew for each call: parameters in CNI_* variables, the network's configuration on stdin, one JSON
object on stdout. It makes no interface itself: from subnet.env it makes the configuration of another plugin (bridge,
if the network does not say which), calls that, and keeps what it called it with, to undo exactly that later.

    main         from the process's start to its exit status
    call         one call: the variables and the configuration, checked
    verbs        ADD, DEL, CHECK, STATUS, GC, VERSION
    delegate     the other plugin: its configuration, finding it, running it
    records      what was delegated for which attachment, on disk
    readiness    whether subnet.env and the daemon are there
    failure      errors, by the specification's codes
    install      puts the plugin where runtimes look for it

Specification: CNI 1.1.0 (github.com/containernetworking/cni, SPEC.md); keys, defaults and files as flannel's plugin has
them. Only the standard library is imported, and little of it: every container waits for it.
"""
