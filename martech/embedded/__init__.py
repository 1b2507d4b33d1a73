from contextlib import nullcontext


def servers_for(argv):
    return nullcontext()
