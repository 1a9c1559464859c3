"""Program -> roles: attention, feed-forward, residual stream, embedding, by dataflow alone."""

from peftc.sites.find import find_sites
from peftc.sites.report import absent_roles, report
from peftc.sites.site import Attention, Site, Sites

__all__ = ["Attention", "Site", "Sites", "absent_roles", "find_sites", "report"]
