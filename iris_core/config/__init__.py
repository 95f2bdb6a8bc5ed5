"""The settings of an experiment and the recipes that hold them, checked before anything heavy starts.

Add a field to the part that it belongs to, with a description: the documentation and the form in the Prefect UI show
it. Most parts enter the keys of stages: a new or renamed field makes the stages of old stores run again. A wrong
setting is one line with file, field, value and remedy. Imports no torch and uses no network.
"""

from iris_core.config.data import DataFormat as DataFormat
from iris_core.config.data import DataPart as DataPart
from iris_core.config.data import Source as Source
from iris_core.config.data import SyntheticPart as SyntheticPart
from iris_core.config.data import Turns as Turns
from iris_core.config.experiment import EvaluationPart as EvaluationPart
from iris_core.config.experiment import ExecutionPart as ExecutionPart
from iris_core.config.experiment import Experiment as Experiment
from iris_core.config.experiment import LoraPart as LoraPart
from iris_core.config.experiment import ModelPart as ModelPart
from iris_core.config.experiment import Packing as Packing
from iris_core.config.experiment import TrackingPart as TrackingPart
from iris_core.config.experiment import TrainingPart as TrainingPart
from iris_core.config.experiment import parse_experiment as parse_experiment
from iris_core.config.generation import GenerationPart as GenerationPart
from iris_core.config.objective import ObjectiveName as ObjectiveName
from iris_core.config.objective import ObjectivePart as ObjectivePart
from iris_core.config.schedule import SchedulePart as SchedulePart
from iris_core.config.verification import VerificationPart as VerificationPart
