"""Stands in for the engine's Python: ``ab-initio`` does what a test wants, all else goes to the real engine.

STAND_IN (JSON) in the environment: ``live``, progress to write, after which it waits to be stopped; else ``run``, a
finished run whose files are copied.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path


def main():
    if sys.argv[1:4] != ["-m", "cryoforum_core", "ab-initio"]:
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    from cryoforum_core.cli import parse  # the real command line: an unknown flag ends here with exit code 2

    config = parse(sys.argv[3:])
    wanted = json.loads(os.environ["STAND_IN"])
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(config.model_dump_json())
    if "live" in wanted:
        (out / "live.html").write_text("<p>running</p>")
        (out / "progress.json").write_text(json.dumps(wanted["live"]))
        time.sleep(600)
    shutil.copytree(wanted["run"], out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("config.json"))


if __name__ == "__main__":
    main()
