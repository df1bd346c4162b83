"""What the cluster tests share: one control plane for them all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devcluster.controlplane import ControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(tmp_path_factory.mktemp("control-plane")) as control_plane:
        yield control_plane
