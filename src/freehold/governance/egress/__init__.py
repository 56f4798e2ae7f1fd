"""The egress lock: nothing leaves but answers on accepted connections, and a record shows it again on demand.

syscalls.py     numbers of system calls for two processors, and one way to make them
filter.py       our own seccomp filter: what is refused, written as a program for the kernel
namespaces.py   an empty network namespace, a private IPC namespace, and no capabilities
landlock.py     the third layer: no TCP, no file outside of named directories, no signal to other processes
descriptors.py  what a process may hold open when it is sealed
mounts.py       file systems that another program or machine answers for
recorder.py     a process outside of the seal that refuses and writes down each attempt
seal.py         the layers in their order; self_test.py: whether they hold, tried from inside
routes*.py      every way out that we know, as code that tries it
outside.py      the listener that really receives; inside.py: the process that tries; matrix.py: both, for each layer
evidence.py     the matrix as a signed document, and whether such a document still says something
bytecode.py     whether Python runs what the sources say
"""
