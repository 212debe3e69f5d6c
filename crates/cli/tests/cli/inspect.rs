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
    let counted = |text: &str| text.split("\nestimate: ").next().unwrap().to_string();
    assert_eq!(counted(&workplace.succeed(&["inspect", "tiny/bundle.toml"])), counted(&text));
    assert!(text.contains(" s a picture on this machine, at ") && text.contains("\nimage decoder       vqgan "), "{text}");
    let json = workplace.json(&["inspect", "tiny", "--json"]);
    let of_weights: u64 =
        json["parts"].as_array().unwrap().iter().filter(|part| part["part"] != "judge").map(|part| part["parameter_count"].as_u64().unwrap()).sum();
    assert_eq!(json["costs"]["parameters"].as_u64(), Some(of_weights), "counted and held: {json}");

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
fn published_sizes_stand_beside_what_their_papers_say() {
    let workplace = Workplace::new();
    let text = workplace.succeed(&["inspect", "--published", "imagen"]);
    for line in [
        "text_encoder        t5                    4.76G      4.60G",
        "super_resolution 1  efficient_unet         472M       600M",
        "one picture, 250 steps of each diffusion network: 2480.46T products, at least ",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let json = workplace.json(&["inspect", "--published", "stable-diffusion-1", "--json"]);
    assert_eq!(json["parts"][1]["parameters"], 859_520_964, "{json}");
    let both = workplace.run(&["inspect", "x", "--published", "ddpm"]);
    assert!(both.status == 2 && workplace.run(&["inspect"]).status == 2, "{both:?}");
}

#[test]
fn recipes_say_what_their_networks_cost() {
    let workplace = Workplace::new();
    let recipe = |name: &str| concat!(env!("CARGO_MANIFEST_DIR"), "/../../recipes/").to_string() + name;
    let vqgan = workplace.succeed(&["inspect", &recipe("vqgan/pictograms.toml")]);
    assert!(vqgan.contains("\n# image encoder       vqgan ") && vqgan.contains("\n# estimate: "), "{vqgan}");
    let ddpm = workplace.json(&["inspect", &recipe("ddpm/pictograms.toml"), "--json"]);
    assert!(ddpm["costs"]["parts"][0]["passes"].as_u64().unwrap() > 1 && ddpm["costs_unknown"].is_null(), "{ddpm}");
    let above = workplace.succeed(&["inspect", &recipe("imagen/pictograms_128.toml")]);
    assert!(above.trim_end().ends_with("# costs: known once runs/imagen-pictograms-64/bundle is there"), "{above}");
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
