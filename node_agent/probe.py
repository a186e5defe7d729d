"""`python -m node_agent.probe [--ready] SOCKET`: whether an agent answers, as a kubelet asks.

It asks as a container runtime does, with the CNI verb STATUS. With `--ready` the answer must be
that the node takes pods. It imports no more than the shim, because it runs every few seconds.
"""

import sys

from cni.sluice_cni import STATUS_TIMEOUT, NoAnswerError, ask

_STATUS = b'CNI_COMMAND=STATUS\0\0{"cniVersion":"1.1.0","name":"sluice","type":"sluice"}'


def main(arguments: list[str]) -> None:
    """End with 0, or with 1 and a sentence; with 2 where it was called wrongly."""
    *options, path = arguments or [""]
    if options not in ([], ["--ready"]) or not path:
        sys.stderr.write(f"{__doc__.partition(':')[0]}\n")
        sys.exit(2)
    try:
        answer = ask(path.encode(), _STATUS, STATUS_TIMEOUT)
    except (OSError, NoAnswerError) as error:
        sys.exit(f"the node agent does not answer at {path}: {error}")
    if options and answer[:1] != b"0":
        sys.exit(answer[1:].decode())


if __name__ == "__main__":
    main(sys.argv[1:])
