"""Importing this module teaches transformers' Auto classes about CondViT, in this process.

A checkpoint carries its own code, which runs only with `trust_remote_code=True`. After `import lrvsf.auto` the
installed classes are used instead, so that nothing from a checkpoint is ever executed:

    import lrvsf.auto
    model = AutoModel.from_pretrained("runs/mini/category")

The Hub files themselves must not do this: there it would silently replace a checkpoint's own code.
"""

from transformers import AutoConfig, AutoModel, AutoProcessor, ImageFeatureExtractionPipeline, Pipeline

# Not from the top level, where early 5.x offers it only if torchvision is installed.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from configuration_condvit import CondViTConfig
from modeling_condvit import CondViTModel
from processing_condvit import CondViTPipeline, CondViTProcessor

AutoConfig.register("condvit", CondViTConfig)
AutoModel.register(CondViTConfig, CondViTModel)
AutoProcessor.register(CondViTConfig, CondViTProcessor)  # with a tokenizer it is more than an image processor
AutoImageProcessor.register(CondViTConfig, image_processor_classes={"pil": CondViTProcessor})


class PipelineOfModel(ImageFeatureExtractionPipeline):
    """What `pipeline("image-feature-extraction")` makes: CondViT's own for a CondViT, transformers' for all others."""

    def __new__(cls, model, **kwargs) -> Pipeline:
        own = model.config.model_type == "condvit"
        return (CondViTPipeline if own else ImageFeatureExtractionPipeline)(model, **kwargs)


CondViTConfig.custom_pipelines = {}  # it names the checkpoint's code, which `pipeline` would ask to trust
PIPELINE_REGISTRY.supported_tasks["image-feature-extraction"]["impl"] = PipelineOfModel
