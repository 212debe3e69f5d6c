//! `MODEL_CARD.md` for bundles that bring none of their own: the manifest in words.

use crate::Manifest;
use std::fmt::Write;

pub fn model_card(manifest: &Manifest) -> String {
    let mut card = format!("# {}\n\nBundle `{}`, written by smalti.\n\n", manifest.name, manifest.id());
    card += "| part | network | parameters | stored as | file |\n|---|---|---|---|---|\n";
    for part in manifest.parts() {
        if let Some((weights, kind, _)) = manifest.summary(part) {
            let _ = writeln!(card, "| {} | {kind} | {} | {} | {} |", part.key(), weights.parameter_count, weights.storage.name(), weights.file);
        }
    }
    for part in manifest.parts() {
        let Some((_, _, provenance)) = manifest.summary(part) else { continue };
        let _ = writeln!(card, "\n## {}\n", part.key());
        if let Some(source) = &provenance.source {
            let _ = writeln!(card, "Imported from {source}.");
        }
        if let Some(data) = &provenance.data {
            let _ = writeln!(card, "Trained on {data}.");
        }
        if let Some(steps) = provenance.steps {
            let time = provenance.seconds.map(|seconds| format!(" in {seconds:.0} s")).unwrap_or_default();
            let _ = writeln!(card, "Trained for {steps} steps{time}.");
        }
        for (name, value) in &provenance.results {
            let _ = writeln!(card, "- {name}: {value:.4}");
        }
        if let Some(recipe) = &provenance.recipe {
            let _ = writeln!(card, "\n```toml\n{}\n```", recipe.trim_end());
        }
    }
    card
}
