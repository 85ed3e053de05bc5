"""What is in the folder of a store."""


def contents(store):
    return {path.name: path.read_bytes() for path in sorted(store.folder.iterdir())}
