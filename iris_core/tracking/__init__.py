"""MLflow: where it is, how to talk to it, and what is logged and registered there, each thing exactly once.

Every write is found again by a key of its content when a reply is lost, and outages are waited out. MLflow's client takes
seconds to import, so only `connect` and what works with a client import it.
"""

from iris_core.tracking.connection import artifact_folder as artifact_folder
from iris_core.tracking.connection import check as check
from iris_core.tracking.connection import connect as connect
from iris_core.tracking.connection import holds as holds
from iris_core.tracking.connection import service_errors as service_errors
