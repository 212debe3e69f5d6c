//! Where everything about one model or one system is: `cargo xtask where vqgan`, `cargo xtask where latent_diffusion`.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Systems that are named after a paper and not after the network they train.
///
/// A network with a training of its own has a recipe module and a folder of recipes of its name. Diffusion networks share one training: DDPM, latent diffusion
/// and each stage of Imagen's cascade take the same step, and differ in what is drawn on and what the network is told, which the numbers say.
pub const SYSTEMS: &[System] = &[
    System { name: "ddpm", network: "unet", training: "diffusion", frozen: &[] },
    System { name: "latent_diffusion", network: "unet", training: "diffusion", frozen: &["image_tokenizer", "text_encoder"] },
    System { name: "noisy_classifier", network: "noisy", training: "noisy_classifier", frozen: &["image_tokenizer"] },
    System { name: "imagen", network: "efficient_unet", training: "diffusion", frozen: &["text_encoder"] },
];

/// A system: one network in training, and the frozen ones it stands on.
pub struct System {
    /// Its folder in `recipes/`.
    pub name: &'static str,
    /// The model that is trained.
    pub network: &'static str,
    /// The recipe module that trains it: `system` in its recipes.
    pub training: &'static str,
    /// Roles in `crates/models/src`, any model of which will do.
    pub frozen: &'static [&'static str],
}

/// What `where` knows beside the networks: how a trained diffusion network becomes pictures.
const DIFFUSION: &[(&str, &str)] = &[
    ("the mathematics: levels, samplers, guidance", "crates/generation/src/diffusion"),
    ("prompt to pictures", "crates/pipeline/src/text_to_image/diffusion.rs"),
    ("how it hangs together", "docs/concepts/diffusion.md"),
];

type Place = (&'static str, PathBuf);

/// Prints the places of a model or a system; what is missing has a mark.
pub fn run(root: &Path, name: &str) -> Result<()> {
    for (what, place) in places(root, name)? {
        let mark = if place.exists() { ' ' } else { '!' };
        println!("{mark} {:<60} {what}", place.strip_prefix(root).unwrap_or(&place).display());
    }
    Ok(())
}

fn places(root: &Path, name: &str) -> Result<Vec<Place>> {
    let models = model_folders(root)?;
    if let Some(folder) = models.iter().find(|folder| folder.ends_with(name)) {
        return Ok(model_places(root, folder, name));
    }
    let systems: Vec<&System> = SYSTEMS.iter().filter(|system| system.name == name || system.training == name).collect();
    if systems.is_empty() {
        let models = models.iter().filter_map(|folder| folder.file_name()).map(|model| model.to_string_lossy().into_owned());
        let known: Vec<String> = models.chain(SYSTEMS.iter().map(|system| system.name.to_string())).collect();
        bail!("no model or system `{name}`; hint: there are {}", known.join(", "));
    }
    system_places(root, &models, &systems)
}

fn model_places(root: &Path, folder: &Path, model: &str) -> Vec<Place> {
    let mut places = vec![("network, config, import, tests, goldens", folder.to_path_buf())];
    if let Some(training) = Training::of(root, folder, model) {
        places.push(("what a batch is and what a step does", training.module));
        places.extend(training.recipes.into_iter().map(|recipes| ("the numbers", recipes)));
    }
    places.push(("prose", root.join("docs/models").join(model).with_extension("md")));
    if SYSTEMS.iter().any(|system| system.network == model) {
        places.extend(DIFFUSION.iter().map(|(what, place)| (*what, root.join(place))));
    }
    places.push(("what is saved and served", root.join("crates/pipeline/src/bundle.rs")));
    places
}

fn system_places(root: &Path, models: &[PathBuf], systems: &[&System]) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    for system in systems {
        let network = models.iter().find(|folder| folder.ends_with(system.network));
        places.push(("the network that is trained", network.with_context(|| format!("`{}` is no model", system.network))?.clone()));
        places.extend(system.frozen.iter().map(|role| ("frozen beside it, any of these", root.join("crates/models/src").join(role))));
        places.push(("what a batch is and what a step does", recipe_module(root, system.training)));
        places.push(("the numbers", root.join("recipes").join(system.name)));
        places.push(("prose", root.join("docs/models").join(system.network).with_extension("md")));
    }
    places.extend(DIFFUSION.iter().map(|(what, place)| (*what, root.join(place))));
    places.push(("what is saved and served", root.join("crates/pipeline/src/bundle.rs")));
    let mut seen = Vec::new();
    places.retain(|(_, place)| {
        !seen.contains(place) && {
            seen.push(place.clone());
            true
        }
    });
    Ok(places)
}

/// Where a model is trained.
pub struct Training {
    /// A file, or a folder where the training has parts.
    pub module: PathBuf,
    /// Folders of recipes.
    pub recipes: Vec<PathBuf>,
}

impl Training {
    /// `None` for a model that is not trained here: it has no loss and is the network of no system.
    pub fn of(root: &Path, folder: &Path, model: &str) -> Option<Self> {
        let mut systems = SYSTEMS.iter().filter(|system| system.network == model).peekable();
        if let Some(first) = systems.peek() {
            let module = recipe_module(root, first.training);
            return Some(Self { module, recipes: systems.map(|system| root.join("recipes").join(system.name)).collect() });
        }
        folder.join("loss.rs").exists().then(|| Self { module: recipe_module(root, model), recipes: vec![root.join("recipes").join(model)] })
    }
}

fn recipe_module(root: &Path, training: &str) -> PathBuf {
    let modules = root.join("crates/train/src/recipes");
    let folder = modules.join(training);
    if folder.join("mod.rs").exists() { folder } else { modules.join(format!("{training}.rs")) }
}

/// Every folder of `crates/models/src` that holds a `config.rs`: a model.
pub fn model_folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![root.join("crates/models/src")];
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.file_name().is_some_and(|name| name == "config.rs") {
                found.push(folder.clone());
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
    }

    fn shown(name: &str) -> Vec<String> {
        let root = root();
        places(&root, name).unwrap().iter().map(|(_, place)| place.strip_prefix(&root).unwrap().display().to_string()).collect()
    }

    #[test]
    fn a_system_leads_to_its_network_and_the_network_to_its_systems() {
        for system in SYSTEMS {
            let network = shown(system.network);
            assert!(shown(system.name).contains(&network[0]), "{}", system.name);
            assert!(network.contains(&format!("recipes/{}", system.name)), "{}", system.network);
        }
        assert!(shown("unet").contains(&"crates/train/src/recipes/diffusion".to_string()), "a module that is a folder");
        assert!(shown("diffusion").contains(&"recipes/imagen".to_string()));
    }

    #[test]
    fn a_frozen_model_has_no_recipe() {
        assert!(shown("vqgan").contains(&"crates/train/src/recipes/vqgan.rs".to_string()));
        for model in ["t5", "autoencoder_tiny"] {
            assert!(!shown(model).iter().any(|place| place.contains("recipes")), "{model}");
        }
        assert!(places(&root(), "nothing").unwrap_err().to_string().contains("no model or system `nothing`; hint: there are"));
    }
}
