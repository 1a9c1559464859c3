"""YAML text -> Spec: strict loader, schema, expansion, catalogue of shipped specs. No torch."""

from peftc.spec.insertion import Insertion, ModuleGlob
from peftc.spec.layers import Layers
from peftc.spec.load import load_spec
from peftc.spec.resolved import Spec
from peftc.spec.schema import Unfreeze

__all__ = ["Insertion", "Layers", "ModuleGlob", "Spec", "Unfreeze", "load_spec"]
