"""Which assets read which: asked of the graph itself, so that nothing is freed that some asset still needs."""

from compression_assets.graph.build import build_defs
from compression_assets.study.model import Study
from compression_assets.study.names import TABLES


def readers(study: Study) -> dict[str, list[str]]:
    """Asset -> the assets with a directory of their own that read it."""
    graph = build_defs(study).resolve_asset_graph()
    return {
        key.to_user_string(): [
            child.to_user_string()
            for child in graph.get(key).child_keys
            if child.to_user_string() not in TABLES
        ]
        for key in graph.get_all_asset_keys()
    }
