import sys
from importlib import import_module

import pytest

from shortlist import UserError

EXTRAS = {
    "mteb": ("mteb", "mteb"),
    "langchain": ("langchain_core", "langchain"),
    "llama_index": ("llama_index", "llama-index"),
}


@pytest.mark.parametrize("module", EXTRAS)
def test_a_missing_package_is_one_line_that_names_the_extra(module, monkeypatch):
    package, extra = EXTRAS[module]
    monkeypatch.delitem(sys.modules, f"shortlist.integrations.{module}", raising=False)
    for name in {package, *(name for name in sys.modules if name.startswith(f"{package}."))}:
        monkeypatch.setitem(sys.modules, name, None)
    message = rf"^{package} is not installed: shortlist.integrations needs it for .*'shortlist\[{extra}\]'\.$"
    with pytest.raises(UserError, match=message):
        import_module(f"shortlist.integrations.{module}")
