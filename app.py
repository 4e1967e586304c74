"""Start Finetune: `python app.py`. See `python app.py --help` for host, port, public link and passwords."""

import sys

from finetune.ui import serve

if __name__ == "__main__":
    sys.exit(serve.main())
