"""The data sets: disjoint splits of the chat data, tokenised with the base model's tokenizer."""

from collections.abc import Iterator

import dagster as dg

from compression_assets.assets.artifact import Artifact, ArtifactConfig, Workplace, make, result
from compression_assets.assets.layout import BASE_MODEL, DATASETS, DATASETS_OP, OWNERS
from compression_assets.resources.gpu import Gpu
from compression_assets.resources.storage import StudyStorage
from compression_assets.study import Study
from compression_assets.techniques.step import StepReport

DESCRIPTIONS = {
    "calibration": "Conversations over which pruning measures activations.",
    "finetuning": "Conversations for fine-tuning after pruning.",
    "teacher": "Conversations on which the teacher is corrected, apart from what it teaches on.",
    "distillation": "Conversations over which the teacher's logits are computed and every student distils.",
    "evaluation": "Held-out conversations over which every model's perplexity is measured.",
}
CHECK = "splits_disjoint"


def split_artifact(study: Study, split: str) -> Artifact:
    return Artifact(
        asset=DATASETS[split],
        settings={"data": study.data.model_dump(mode="json"), "split": split},
        code="compression_assets.text.prepare",
        inputs=(BASE_MODEL,),
        seed=study.seed,
        checks=(CHECK,),
    )


def dataset_assets(study: Study) -> dg.AssetsDefinition:
    """All splits that the study has, as one asset definition: they are cut from the same shuffled source."""
    artifacts = {split: split_artifact(study, split) for split in study.data.splits.sizes()}
    specs = [
        dg.AssetSpec(
            artifact.asset,
            deps=[BASE_MODEL],
            group_name="data",
            description=DESCRIPTIONS[split],
            kinds={"parquet"},
            tags={"stage": "data"},
            owners=OWNERS,
            code_version=artifact.code_version,
        )
        for split, artifact in artifacts.items()
    ]

    @dg.multi_asset(
        name=DATASETS_OP,
        specs=specs,
        check_specs=[spec for artifact in artifacts.values() for spec in artifact.check_specs()],
        can_subset=True,
    )
    def datasets(
        context: dg.AssetExecutionContext, config: ArtifactConfig, storage: StudyStorage, gpu: Gpu
    ) -> Iterator[dg.MaterializeResult]:
        from compression_assets.text.prepare import Preparation

        preparation = Preparation(study.data, study.seed, storage.downloads)
        for split, artifact in artifacts.items():
            if dg.AssetKey(artifact.asset) not in context.selected_asset_keys:
                continue

            def build(place: Workplace, split: str = split) -> StepReport:
                return preparation.write(split, place.inputs[BASE_MODEL], place.output, place.report)

            manifest, cached = make(context, artifact, build, storage, gpu, config.rebuild)
            shown = {
                key: manifest.metadata[key] for key in ("rows", "tokens", "predicted_tokens", "content_share")
            }
            yield result(manifest, cached, storage.artifacts.root / "data" / artifact.asset, **shown)

    return datasets
