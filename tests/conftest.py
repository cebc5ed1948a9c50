import pytest
import torch
from hypothesis import settings

# The same examples on every machine, and no time limit that a busy one would miss.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

LONGEST = ("test_soak.py", "test_replicas.py")  # minutes of a process that mostly waits


def pytest_collection_modifyitems(items):
    """The longest files first: started last, they would leave other processes without work."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """A test and its fixtures draw the same weights, whichever files its process ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """A random language model and a random vision tower, in Hugging Face's layout."""
    from tests.tiny_run import write_language, write_vision  # not where only kernels are tested

    folder = tmp_path_factory.mktemp("parts")
    with torch.random.fork_rng():  # who asks for it first goes on as all others do
        write_language(folder / "llama")
        write_vision(folder / "siglip")
    return folder


@pytest.fixture(scope="session")
def page_folder(tmp_path_factory):
    """All that the commands and programs of the pages name."""
    from tests.page_folder import write_page_folder

    folder = tmp_path_factory.mktemp("pages")
    with torch.random.fork_rng():
        write_page_folder(folder)
    return folder


@pytest.fixture
def folder(parts, tmp_path):
    """A fresh run folder beside links to the random language and vision folders."""
    for name in ("llama", "siglip"):
        (tmp_path / name).symlink_to(parts / name)
    return tmp_path
