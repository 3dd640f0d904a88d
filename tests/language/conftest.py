"""One cache of compiled functors for all tests of the language, which are compiled quickly."""

import pytest

from fastdml.language import compile


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDML_CACHE", str(tmp_path_factory.mktemp("cache")))
        build = compile._build()
        patch.setattr(build, "ROWS", build.ROWS.replace("-O3", "-O1"))
        yield
