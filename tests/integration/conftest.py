from __future__ import annotations

import sys
from pathlib import Path

# Test folders are no packages (importlib mode): make the kit importable.
sys.path.insert(0, str(Path(__file__).parent))
