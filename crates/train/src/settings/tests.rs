use super::*;

#[test]
fn a_flag_overrides_the_file_and_the_file_the_preset() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, "size = \"small\"\niters = 7\nlearning_rate = 0.5\nhidden_size = 64\n").unwrap();
    let flags = Overrides { iters: Some(9), ..Overrides::default() };
    let settings = Overrides::read(&path).unwrap().overlaid(flags).settings().unwrap();
    let want = Settings { iters: 9, learning_rate: 0.5, warmup: 0, ..Settings::of(Preset::Small) };
    let want = Settings { architecture: Architecture { hidden_size: 64, ..want.architecture }, ..want };
    assert_eq!(settings, want);
}

#[test]
fn an_unknown_key_and_a_setting_out_of_range_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, "itres = 7\n").unwrap();
    let error = Overrides::read(&path).unwrap_err().to_string();
    assert!(error.contains("unknown field `itres`") && error.contains("run.toml"), "{error}");
    let overrides = Overrides { batch_size: Some(0), ..Overrides::default() };
    assert_eq!(overrides.settings().unwrap_err().to_string(), "settings: batch_size is 0, expected 1 or more");
    let overrides = Overrides { head_dim: Some(0), ..Overrides::default() };
    assert_eq!(overrides.settings().unwrap_err().to_string(), "settings: head_dim is 0, expected 1 or more");
    let overrides = Overrides { learning_rate: Some(f32::NAN), ..Overrides::default() };
    assert!(overrides.settings().is_err());
}

#[test]
fn settings_are_written_as_the_file_that_gives_them_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    for settings in [
        Settings { learning_rate: 1e-5, val_split: 1e-7, ..Settings::of(Preset::Base) },
        Settings { optimizer: OptimizerKind::Muon, seed: u64::MAX >> 1, ..Settings::of(Preset::Tiny) },
    ] {
        std::fs::write(&path, settings.toml()).unwrap();
        assert_eq!(Overrides::read(&path).unwrap().settings().unwrap(), settings);
    }
}

#[test]
fn differences_are_named_with_both_values() {
    let (a, mut b) = (Settings::of(Preset::Tiny), Settings::of(Preset::Tiny));
    assert!(a.differences(&b).is_empty());
    b.seed = 5;
    assert_eq!(a.differences(&b), ["seed was 0, now 5"]);
}
