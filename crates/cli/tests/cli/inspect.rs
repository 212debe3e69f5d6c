//! `smalti inspect`: every kind of thing it knows.

use crate::program::Workplace;

#[test]
fn bundles_weights_checkpoints_and_pictures() {
    let workplace = Workplace::with_bundle();
    let text = workplace.succeed(&["inspect", "tiny"]);
    assert!(
        text.starts_with("bundle tiny-") && text.contains("checksums hold") && text.contains("\ngenerator  dalle_bart, ") && text.contains("psnr: 12.5000"),
        "{text}"
    );
    assert_eq!(workplace.succeed(&["inspect", "tiny/bundle.toml"]), text);

    let text = workplace.succeed(&["inspect", "tiny/generator.safetensors"]);
    assert!(text.contains("safetensors, ") && text.contains("text_table.weight") && text.contains("f32"), "{text}");
    let count = workplace.json(&["inspect", "tiny/generator.safetensors", "--json"])["parameter_count"].as_u64().unwrap();
    let of_part = workplace.json(&["inspect", "tiny", "--json"])["parts"][1]["parameter_count"].as_u64().unwrap();
    assert_eq!(count, of_part);

    workplace.copy("nn/tests/goldens/formats.pt", "formats.pt");
    let text = workplace.succeed(&["inspect", "formats.pt"]);
    assert!(text.contains("PyTorch checkpoint") && text.contains("bf16") && text.contains("mask"), "{text}");

    workplace.succeed(&["generate", "a fish", "--bundle", "tiny", "--count", "1"]);
    let text = workplace.succeed(&["inspect", "out/a-fish-0-0.png"]);
    assert!(text.contains("16x16 pixels") && text.contains("prompt: a fish") && text.contains("bundle: tiny-"), "{text}");
}

#[test]
fn runs_and_other_folders() {
    let workplace = Workplace::new();
    workplace.write("run/recipe.toml", "system = \"vqgan\"\nname = \"x\"\n");
    workplace.write("run/log.jsonl", "{\"kind\":\"evaluation\",\"step\":3,\"measures\":{},\"seconds\":1.0}\n{\"half");
    let text = workplace.succeed(&["inspect", "run"]);
    assert!(text.contains("system       vqgan") && text.contains("\"step\":3") && text.contains("not yet"), "{text}");
    let finished = workplace.run(&["inspect", "."]);
    assert!(finished.status == 1 && finished.stderr.contains("expected a bundle (with bundle.toml) or a run (with recipe.toml)"), "{finished:?}");
}
