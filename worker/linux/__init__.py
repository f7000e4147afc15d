"""What a process asks of Linux, by system call: a file system, a network and rights of its own."""
