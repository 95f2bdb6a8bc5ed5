"""MLflow: where it is, how to talk to it, and how runs and model versions are written there exactly once.

A change here must keep that: each write is found again by a key of its content when a reply was lost, and outages are
waited out. MLflow's client takes seconds to import, so that only `connect` and modules that work with a client import
it.
"""

from iris_core.tracking.connection import artifact_folder as artifact_folder
from iris_core.tracking.connection import check as check
from iris_core.tracking.connection import connect as connect
from iris_core.tracking.connection import holds as holds
from iris_core.tracking.connection import service_errors as service_errors
