"""`python -m node_agent`."""

from node_agent.main import main

main()
