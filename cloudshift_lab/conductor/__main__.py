"""``python -m cloudshift_lab.conductor --home DIR``."""

from cloudshift_lab.conductor.daemon import run

if __name__ == "__main__":
    run()
