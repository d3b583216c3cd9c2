from .catalog import open_images as open_images
from .catalog import read_catalog as read_catalog
from .classificator import Classificator as Classificator
from .classificator.opening import pretrained_heads as pretrained_heads
from .demo import make_marketplace as make_marketplace
from .embeddings.embed import embed as embed
from .embeddings.store import EmbeddingStore as EmbeddingStore
from .encoders import RUCLIP_MODELS as RUCLIP_MODELS
from .encoders import load_encoder as load_encoder
from .encoders.ruclip import RUCLIP_FILES as RUCLIP_FILES
from .encoders.ruclip import load as load
from .evaluation import evaluate as evaluate
from .export import export_classificator as export_classificator
from .finetuning.trackers import training_progress as training_progress
from .heads import HeadBundle as HeadBundle
from .integrations.hub import push_to_hub as push_to_hub
from .integrations.sklearn import ProductClassifier as ProductClassifier
from .published.speed import SpeedTest as SpeedTest
from .trainer import Trainer as Trainer
from .training import HeadSettings as HeadSettings
from .training import fit_heads as fit_heads
from .training import train_heads as train_heads
from .types import Embeddings as Embeddings
from .types import Predictions as Predictions
from .types import Split as Split

__version__: str
