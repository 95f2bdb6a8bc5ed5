"""What a user can set: experiments and recipes, checked field by field before anything heavy starts.

A wrong setting is one line with file, place, field, value and remedy. Light: no torch, no network.
"""

from iris_core.config.data import DataFormat as DataFormat
from iris_core.config.data import DataPart as DataPart
from iris_core.config.data import Source as Source
from iris_core.config.data import SyntheticPart as SyntheticPart
from iris_core.config.data import Turns as Turns
from iris_core.config.experiment import EvaluationPart as EvaluationPart
from iris_core.config.experiment import Experiment as Experiment
from iris_core.config.experiment import GenerationPart as GenerationPart
from iris_core.config.experiment import LoraPart as LoraPart
from iris_core.config.experiment import ModelPart as ModelPart
from iris_core.config.experiment import ObjectiveName as ObjectiveName
from iris_core.config.experiment import ObjectivePart as ObjectivePart
from iris_core.config.experiment import Packing as Packing
from iris_core.config.experiment import SchedulePart as SchedulePart
from iris_core.config.experiment import TrackingPart as TrackingPart
from iris_core.config.experiment import TrainingPart as TrainingPart
from iris_core.config.experiment import parse_experiment as parse_experiment
