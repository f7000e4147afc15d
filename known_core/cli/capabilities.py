"""`known capabilities`: what a service can do."""

from known_core.cli.options import DEFAULT_SERVER, ApiKey, AsJson, Server, print_json


def capabilities(server: Server = DEFAULT_SERVER, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Show what the service can do: tasks, libraries, hyper-models, workers and limits."""
    from known_core.client import Client

    with Client(server, api_key) as client:
        found = client.capabilities()
    if as_json:
        print_json(found.raw)
        return
    print(f"known {found.version} at {client.server}, access: {found.access}")
    for name in ("tasks", "libraries", "hypermodels", "engines"):
        print(f"{name}: {', '.join(getattr(found, name))}")
    for worker in found.workers:
        gpus, queues = ", ".join(worker.gpus) or "no GPU", ", ".join(worker.queues)
        print(f"worker {worker.name}: {gpus}, {worker.cores} cores, torch {worker.torch}, queues {queues}")
    if not found.workers:
        print("no worker is running: jobs wait")
    for name, value in found.limits.items():
        print(f"{name}: {value}")
