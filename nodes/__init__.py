"""The nodes of this pack."""

from comfy_api.latest import ComfyExtension, io

from .comparison import PAGGrid
from .guidance import PAGAVGuider, PAGGuider, PAGModelPatch
from .host import installation
from .host.editor import routes
from .inspection import PAGInspect
from .layers import PAGLayers
from .options import PAGOptionsNode
from .research.adm import PAGADMClassLabel, PAGADMLoader
from .research.distillation import PAGSDSGradient, PAGSDSImageGradient, PAGSDSOptimizer
from .research.heads import PAGHeadSearch
from .research.restoration import PAGDPSSampler, PAGMeasure, PAGMeasurement, PAGPSLDSampler
from .sampling import PAGKSampler

routes.register()
installation.warn()


class PAGExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [PAGModelPatch, PAGOptionsNode, PAGKSampler, PAGGuider, PAGAVGuider, PAGLayers, PAGInspect, PAGGrid,
                PAGADMLoader, PAGADMClassLabel, PAGMeasurement, PAGMeasure, PAGDPSSampler, PAGPSLDSampler,
                PAGSDSGradient, PAGSDSImageGradient, PAGSDSOptimizer, PAGHeadSearch]


async def comfy_entrypoint() -> PAGExtension:
    return PAGExtension()
