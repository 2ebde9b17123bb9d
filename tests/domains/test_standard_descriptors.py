"""Programs that are started with standard descriptors closed, as some services are."""

import json
import subprocess
import sys

import pytest

_PROGRAM = """
import json, os, stat, sys
import domains

def job():
    print("from the job", flush=True)
    print("from the job", file=sys.stderr, flush=True)
    return "done"

async def main(env):
    sockets = [number for number in range(3) if stat.S_ISSOCK(os.fstat(number).st_mode)]
    os.write(1, b"as C code would")
    os.write(2, b"as C code would")
    return sockets, await env.domain_mgr.run(job)

result = domains.run(main, link=sys.argv[2])
with open(sys.argv[1], "w") as file:
    json.dump(result, file)
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_a_program_may_be_started_with_standard_descriptors_closed(link, tmp_path, closed):
    result = tmp_path / "result"
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", _PROGRAM, str(result), link]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(result.read_text()) == [[], "done"]


def test_a_domain_whose_standard_output_is_closed_goes_without_it():
    program = """
import os, sys
from domains.standard_streams import print_whole_lines
os.close(1)
print_whole_lines()
print("to nobody")
print(sys.stdout, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "None\n")
