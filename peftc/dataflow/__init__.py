"""Program -> roles: attention, feed-forward, residual stream, embedding, by dataflow alone."""

from peftc.dataflow.find import find_sites
from peftc.dataflow.report import absent_roles, report
from peftc.dataflow.site import Attention, Site, Sites

__all__ = ["Attention", "Site", "Sites", "absent_roles", "find_sites", "report"]
