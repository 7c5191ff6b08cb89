"""CloudShift Lab: move a running PyTorch job to another cloud without losing a training step."""

__version__ = "0.1.0"


def _jupyter_server_extension_points() -> list[dict[str, object]]:
    """Where Jupyter finds the REST routes, the events and the dashboard."""
    from cloudshift_lab.lab.server import CloudshiftServer

    return [{"module": "cloudshift_lab.lab.server", "app": CloudshiftServer}]


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    """Where Jupyter finds the built side panel."""
    return [{"src": "labextension", "dest": "cloudshift-lab"}]
