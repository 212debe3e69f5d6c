//! What a person reads who wrote a recipe wrong.

use serde::Deserialize;
use smalti_train::RecipeFile;
use smalti_train::learning_rate::Schedule;
use smalti_train::settings::{OptimizerSettings, TrainSettings, validate};
use std::path::Path;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Toy {
    #[allow(dead_code)]
    system: String,
    optimizer: OptimizerSettings,
    schedule: Schedule,
    train: TrainSettings,
}

const RECIPE: &str = r#"# What it reproduces.
system = "toy"

[optimizer]
learning_rate = 1e-3
beta_1 = 0.9
beta_2 = 0.95
weight_decay = 0.0

[schedule]
decay = "cosine"
warm_up_steps = 10

[train]
steps = 100
batch_size = 4
seed = 1
log_interval = 10
sample_interval = 50
evaluate_interval = 50
checkpoint_interval = 50
keep_checkpoints = 2

[smoke]
train.steps = 5
schedule = { warm_up_steps = 1 }
"#;

fn read(text: &str, overrides: &[&str], smoke: bool) -> Result<Toy, String> {
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    let file = RecipeFile::from_text(Path::new("toy.toml"), text.to_string(), &overrides, smoke).map_err(|error| error.to_string())?;
    let toy: Toy = file.typed().map_err(|error| error.to_string())?;
    validate(&file, &toy.optimizer, &toy.schedule, &toy.train).map_err(|error| error.to_string())?;
    Ok(toy)
}

#[test]
fn overrides_win_over_smoke_which_wins_over_the_file() {
    assert_eq!(read(RECIPE, &[], false).unwrap().train.steps, 100);
    let smoke = read(RECIPE, &["train.batch_size=2", "schedule.decay=linear"], true).unwrap();
    assert_eq!((smoke.train.steps, smoke.train.batch_size, smoke.schedule.warm_up_steps), (5, 2, 1));
    assert_eq!(smoke.schedule.decay, smalti_train::learning_rate::Decay::Linear);
    assert_eq!(read(RECIPE, &["train.steps=7"], true).unwrap().train.steps, 7);
}

#[test]
fn the_resolved_recipe_reads_back_as_itself() {
    let file = RecipeFile::from_text(Path::new("toy.toml"), RECIPE.to_string(), &["train.seed=9".to_string()], true).unwrap();
    let again = RecipeFile::from_text(Path::new("toy.toml"), file.resolved(), &[], false).unwrap();
    assert_eq!(again.resolved(), file.resolved());
    assert_eq!(again.typed::<Toy>().unwrap().train.seed, 9);
}

/// (what is replaced in the recipe, by what, overrides, smoke, what the message must hold)
type Case = (&'static str, &'static str, &'static [&'static str], bool, &'static [&'static str]);

const CASES: &[Case] = &[
    ("steps = 100", "stepz = 100", &[], false, &["toy.toml:15:", "unknown key `train.stepz`", "did you mean `steps`?"]),
    ("beta_1 = 0.9", "momentum = 0.9", &[], false, &["toy.toml:6:", "`optimizer.momentum`", "expected one of learning_rate, beta_1"]),
    ("[schedule]", "[shedule]", &[], false, &["toy.toml:10:", "`shedule`", "did you mean `schedule`?"]),
    ("steps = 100", "steps = \"many\"", &[], false, &["toy.toml:15:", "`train.steps`", "invalid type: string \"many\", expected usize"]),
    ("steps = 100", "steps = -3", &[], false, &["toy.toml:15:", "`train.steps`", "-3"]),
    ("steps = 100", "steps = 1.5", &[], false, &["toy.toml:15:", "`train.steps`", "1.5"]),
    ("steps = 100", "", &[], false, &["toy.toml:14:", "missing field `steps`"]),
    ("\"cosine\"", "\"cosinus\"", &[], false, &["toy.toml:11:", "`schedule.decay`", "`cosinus`", "`cosine`"]),
    ("seed = 1", "precision = \"fp8\"\nseed = 1", &[], false, &["toy.toml:17:", "`train.precision`", "`fp8`", "`f32`, `bf16`, `auto`"]),
    ("batch_size = 4", "batch_size = 0", &[], false, &["toy.toml:16:", "`train.batch_size`", "expected at least 1, found 0"]),
    ("batch_size = 4", "batch_size = 9000000000000000000", &[], false, &["toy.toml:16:", "`train.batch_size`", "at most"]),
    ("learning_rate = 1e-3", "learning_rate = nan", &[], false, &["toy.toml:5:", "`optimizer.learning_rate`", "found NaN"]),
    ("learning_rate = 1e-3", "learning_rate = -1.0", &[], false, &["toy.toml:5:", "expected more than 0"]),
    ("[train]", "[train", &[], false, &["toy.toml:14:", "not valid TOML"]),
    ("train.steps = 5", "train.stebs = 5", &[], true, &["toy.toml:25:", "`train.stebs`", "did you mean `steps`?"]),
    ("", "", &["train.stebs=5"], false, &["toy.toml with --set train.stebs", "did you mean `steps`?"]),
    ("", "", &["train.steps=many"], false, &["--set train.steps", "invalid type: string \"many\""]),
    ("", "", &["train.steps"], false, &["--set train.steps: expected KEY=VALUE"]),
    ("", "", &["train..steps=4"], false, &["expected KEY=VALUE"]),
    ("", "", &["train.steps.more=4"], false, &["expected KEY=VALUE"]),
    ("", "", &["train.steps=0"], false, &["with --set train.steps", "expected at least 1, found 0"]),
];

#[test]
fn wrong_recipes_are_answered_with_place_key_and_hint() {
    for (from, to, overrides, smoke, expected) in CASES {
        let text = if from.is_empty() { RECIPE.to_string() } else { RECIPE.replacen(from, to, 1) };
        let message = read(&text, overrides, *smoke).expect_err(&format!("{from} -> {to} {overrides:?}"));
        for part in *expected {
            assert!(message.contains(part), "{from} -> {to} {overrides:?}: expected {part:?} in {message:?}");
        }
    }
}

#[test]
fn smoke_needs_its_table_and_a_missing_file_is_named() {
    let text = RECIPE.split("[smoke]").next().unwrap();
    assert!(read(text, &[], true).unwrap_err().contains("no [smoke] table"));
    let error = RecipeFile::read(Path::new("no/such/recipe.toml"), &[], false).unwrap_err();
    assert!(error.to_string().contains("no/such/recipe.toml"), "{error}");
}
