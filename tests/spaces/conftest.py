from browser import chromium  # noqa: F401 - a fixture of every page's tests
from drawn_shop import catalog, shop  # noqa: F401 - likewise
