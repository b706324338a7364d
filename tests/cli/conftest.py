import sys
from pathlib import Path

# For `scripted`, the node that these tests speak to.
sys.path.insert(0, str(Path(__file__).parents[1] / "session"))
