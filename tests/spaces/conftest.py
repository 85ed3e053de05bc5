from browser import chromium  # noqa: F401 - a fixture of every page's tests
