//! The loader through its front door: each source, each kind of flaw, and what is told of it.

use super::*;
use std::ffi::OsString;
use std::time::Duration;

const WEBHOOK_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn env(pairs: &[(&str, &str)]) -> Sources {
    let env = pairs.iter().map(|&(name, value)| (OsString::from(name), OsString::from(value))).collect();
    Sources { env, ..Sources::default() }
}

fn set(key: &str, value: &str) -> Sources {
    Sources { flags: vec![Flag::set(key, value)], ..Sources::default() }
}

/// The flaws as lines.
fn flaws(sources: &Sources) -> Vec<String> {
    load(sources).err().map(|e| e.to_string().lines().map(str::to_owned).collect()).unwrap_or_default()
}

fn only_flaw(sources: &Sources) -> String {
    let flaws = flaws(sources);
    assert_eq!(flaws.len(), 1, "{flaws:?}");
    flaws.into_iter().next().unwrap()
}

fn exposed(secrets: &[Secret]) -> Vec<&str> {
    secrets.iter().map(Secret::expose).collect()
}

#[test]
fn nothing_given_gives_the_contracts_defaults() {
    let Loaded { config, places, warnings } = load(&Sources::default()).unwrap();
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.server.admin_listen.unwrap().to_string(), "127.0.0.1:9090");
    assert_eq!(config.store.retention, Duration::from_secs(604_800));
    assert_eq!(config.stream.queue_bytes, 1_048_576);
    assert_eq!(config.stream.max_age, Some(Duration::from_secs(3_600)));
    assert_eq!(config.limits.payload_bytes, 65_536);
    assert_eq!(config.callbacks.deny_networks.len(), 3);
    assert!(config.auth.api_keys.is_empty() && !config.auth.self_made);
    assert!(places.iter().all(|place| *place == Place::Default));
    assert!(warnings.is_empty());
}

#[test]
fn every_default_is_within_its_own_bounds() {
    for key in KEYS {
        let shown = key.shown(&Config::default());
        let lines = flaws(&Sources::of_toml(&format!("{} = {shown}", key.name)));
        assert!(lines.is_empty(), "{lines:?}");
    }
}

#[test]
fn a_key_can_be_given_by_every_source_and_the_strongest_wins() {
    let mut sources = Sources::of_toml("[server]\ndrain_s = 1\nworkers = 7\n");
    let drain = |sources: &Sources| load(sources).unwrap().config.server.drain.as_secs();
    assert_eq!(drain(&sources), 1);
    sources.env = env(&[("HERENOW_SERVER__DRAIN_S", "2"), ("PATH", "/bin")]).env;
    assert_eq!(drain(&sources), 2);
    sources.flags = vec![Flag::set("server.drain_s", "3"), Flag::set("server.drain_s", "4")];
    assert_eq!(drain(&sources), 4);
    assert_eq!(load(&sources).unwrap().config.server.workers, 7);
}

#[test]
fn a_ratio_is_read_with_and_without_a_fraction() {
    let ratio = |sources: &Sources| load(sources).unwrap().config.otel.sample_ratio.to_string();
    assert_eq!(ratio(&Sources::of_toml("otel.sample_ratio = 0.25")), "0.25");
    assert_eq!(ratio(&Sources::of_toml("otel.sample_ratio = 0")), "0");
    assert_eq!(ratio(&env(&[("HERENOW_OTEL__SAMPLE_RATIO", ".5")])), "0.5");
}

#[test]
fn every_key_has_a_variable_and_a_flag() {
    for key in KEYS {
        let wrong = "\u{0}";
        for sources in [env(&[(&key.env_name(), wrong)]), set(key.name, wrong)] {
            for line in flaws(&sources) {
                assert!(line.contains(&format!("`{}` must be", key.name)), "{line}");
            }
        }
    }
}

#[test]
fn what_is_wrong_in_the_file_is_told_with_line_and_column() {
    for (text, told) in [
        ("[server]\ndrain_s = \"x\"", "2:11: `server.drain_s` must be a whole number from 0 to 3600, but is a text"),
        ("stream.heartbeat_s = 0", "1:22: `stream.heartbeat_s` must be a whole number from 1 to 300, but is 0"),
        ("stream.heartbeat_s = -5", "1:22: `stream.heartbeat_s` must be a whole number from 1 to 300, but is -5"),
        (
            "stream.heartbeat_s = 1.5",
            "1:22: `stream.heartbeat_s` must be a whole number from 1 to 300, but is a number with a fraction",
        ),
        (
            "[callbacks]\n  public_only = 1",
            "2:17: `callbacks.public_only` must be `true` or `false`, but is a number (a text needs quotes)",
        ),
        ("auth.api_keys = 'k'", "1:17: `auth.api_keys` must be a list of texts, but is a text"),
        (
            "auth.api_keys = ['k', 5]",
            "1:17: `auth.api_keys` must be a list of texts, but its entry 2 is a number (a text needs quotes)",
        ),
        (
            "[server.listen]\nport = 1",
            "1:1: `server.listen` must be an IP address with a port, such as `127.0.0.1:8080`, but is a section",
        ),
        ("server = 3", "1:1: `server` is a section: write `[server]`"),
        (
            "server.listen = 'localhost'",
            "1:17: `server.listen` must be an IP address with a port, such as `127.0.0.1:8080`, but is \"localhost\"",
        ),
        ("otel.sample_ratio = 1.5", "1:21: `otel.sample_ratio` must be a number from 0 to 1, but is 1.5"),
        ("otel.sample_ratio = -1", "1:21: `otel.sample_ratio` must be a number from 0 to 1, but is -1"),
        ("otel.sample_ratio = nan", "1:21: `otel.sample_ratio` must be a number from 0 to 1, but is nan"),
        ("otel.sample_ratio = '1'", "1:21: `otel.sample_ratio` must be a number from 0 to 1, but is a text"),
        ("log.format = 'xml'", "1:14: `log.format` must be `text` or `json`, but is \"xml\""),
        ("cluster.node = ''", "1:16: `cluster.node` must be a name of 1 to 128 characters, but is empty"),
        (
            "callbacks.push.url = 'ftp://a'",
            "1:22: `callbacks.push.url` must be an `http://` or `https://` URL, or empty (none), but is a `ftp:` one",
        ),
        (
            "callbacks.deny_networks = ['10.0.0.0/99']",
            "1:27: `callbacks.deny_networks` must be a list of networks, such as `10.0.0.0/8`, but its entry \"10.0.0.0/99\" is none",
        ),
        ("# ü\n[server]\n\"ü\" = 1", "3:1: unknown key `server.ü`"),
        ("a = 'ü' # ü\n'ü' 1", "2:5: "),
    ] {
        let line = only_flaw(&Sources::of_toml(text));
        assert!(line.starts_with(&format!("herenow.toml:{told}")), "{text:?} gave {line:?}");
    }
}

#[test]
fn what_is_wrong_elsewhere_is_told_with_its_name() {
    let by_env = only_flaw(&env(&[("HERENOW_SERVER__DRAIN_S", "soon")]));
    assert_eq!(
        by_env,
        "HERENOW_SERVER__DRAIN_S: `server.drain_s` must be a whole number from 0 to 3600, but is \"soon\""
    );
    let by_set = only_flaw(&set("server.drain_s", ""));
    assert_eq!(by_set, "--set server.drain_s: `server.drain_s` must be a whole number from 0 to 3600, but is \"\"");
    let flags = vec![Flag::named("--listen", "server.listen", "here")];
    let by_flag = only_flaw(&Sources { flags, ..Sources::default() });
    assert!(by_flag.starts_with("--listen: `server.listen` must be an IP address with a port"), "{by_flag}");
}

#[test]
fn an_unknown_name_is_refused_with_what_was_meant() {
    for (text, told) in [
        ("server.lisen = ''", "unknown key `server.lisen`, did you mean `server.listen`?"),
        ("[servers]\nlisten = ''", "unknown key `servers.listen`, did you mean `server.listen`?"),
        ("listen = ''", "unknown key `listen`, did you mean `server.listen`?"),
        ("[store]\nretention = 5", "unknown key `store.retention`, did you mean `store.retention_s`?"),
        ("\"server.listen\" = ''", "unknown key `\"server.listen\"`, did you mean `server.listen`?"),
        ("[bananas]", "unknown key `bananas`"),
    ] {
        let line = only_flaw(&Sources::of_toml(text));
        assert!(line.ends_with(&format!(": {told}")), "{text:?} gave {line:?}");
    }
    for (name, told) in [
        ("HERENOW_SERVER_LISTEN", "unknown key `HERENOW_SERVER_LISTEN`, did you mean `HERENOW_SERVER__LISTEN`?"),
        ("HERENOW_log__level", "unknown key `HERENOW_log__level`, did you mean `HERENOW_LOG__LEVEL`?"),
        ("HERENOW_BANANAS", "unknown key `HERENOW_BANANAS`"),
    ] {
        assert_eq!(only_flaw(&env(&[(name, "x")])), format!("{name}: {told}"));
    }
    assert_eq!(
        only_flaw(&set("auth.audiense", "x")),
        "--set auth.audiense: unknown key `auth.audiense`, did you mean `auth.audience`?"
    );
}

#[test]
fn all_flaws_are_told_in_order() {
    let mut sources = Sources::of_toml("[server]\nworkers = 0\ndrain_s = -1\n[auth]\nkeys = []\n");
    sources.env = env(&[("HERENOW_LOG__LEVEL", "loud"), ("HERENOW_X", "")]).env;
    sources.flags = vec![Flag::set("y", "")];
    let starts: Vec<_> = flaws(&sources).iter().map(|line| line.split(": ").next().unwrap().to_owned()).collect();
    let expected =
        ["herenow.toml:2:11", "herenow.toml:3:11", "herenow.toml:5:1", "HERENOW_LOG__LEVEL", "HERENOW_X", "--set y"];
    assert_eq!(starts, expected);
}

#[test]
fn a_file_that_cannot_be_read_is_a_flaw_beside_others() {
    let mut sources = Sources::of_this_process(Some("/nowhere/x.toml".as_ref()), vec![Flag::set("y", "")]);
    sources.env.clear();
    let lines = flaws(&sources);
    assert_eq!(lines[0], "/nowhere/x.toml: there is no such file");
    assert_eq!(lines.len(), 2);
}

#[test]
fn lists_come_as_toml_json_or_with_commas_and_digits_stay_text() {
    let keys = |sources: &Sources| {
        let config = load(sources).unwrap().config;
        exposed(&config.auth.api_keys).join("|")
    };
    assert_eq!(keys(&Sources::of_toml("auth.api_keys = ['k1', \"k2\"]")), "k1|k2");
    for (text, expected) in [
        (r#"["k1","k2"]"#, "k1|k2"),
        ("k1,k2", "k1|k2"),
        (" k1 , k2 ", "k1|k2"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("007", "007"),
        ("[12345678901234567890123]", "12345678901234567890123"),
        ("[]", ""),
        ("", ""),
    ] {
        assert_eq!(keys(&env(&[("HERENOW_AUTH__API_KEYS", text)])), expected, "{text:?}");
        assert_eq!(keys(&set("auth.api_keys", text)), expected, "{text:?}");
    }
    for wrong in ["k1,,k2", "[\"k1\"", "[true]", "[[]]", "k 1", "schlüssel"] {
        let line = only_flaw(&env(&[("HERENOW_AUTH__API_KEYS", wrong)]));
        assert!(line.contains("`auth.api_keys` must be a list of texts, but"), "{line}");
    }
}

#[test]
fn no_flaw_shows_a_secret() {
    for key in ["auth.api_keys", "auth.device_secrets", "callbacks.storage.secrets", "callbacks.push.secrets"] {
        for wrong in ["[hunter2", "[\"hunter2\", {\"a\":\"hunter2\"}]", "ü hunter2,", "[hunter2]"] {
            for sources in [set(key, wrong), Sources::of_toml(&format!("{key} = '''{wrong}'''"))] {
                let lines = flaws(&sources).join("\n");
                assert!(!lines.is_empty() && !lines.contains("hunter2"), "{lines}");
            }
        }
    }
    let line = only_flaw(&set("callbacks.push.url", "http://me:hunter2@:x/"));
    assert!(!line.contains("hunter2"), "{line}");
}

#[test]
fn what_is_empty_is_off() {
    let text = "server.admin_listen = ''\nauth.audience = ''\ncallbacks.push.url = ''\nstream.max_age_s = 0";
    let config = Config::from_toml(text).unwrap();
    assert_eq!(config.server.admin_listen, None);
    assert_eq!(config.auth.audience, None);
    assert_eq!(config.callbacks.push.url, None);
    assert_eq!(config.stream.max_age, None);
}

#[test]
fn origins_are_taken_in_the_spelling_that_browsers_send() {
    let origins = |text: &str| load(&set("server.cors_origins", text));
    for right in ["https://app.example.com", "http://localhost:3000", "http://[::1]:3000", "capacitor://localhost"] {
        assert_eq!(origins(right).unwrap().config.server.cors_origins, [right]);
    }
    for wrong in
        ["*", "null", "app.example.com", "https://app.example.com/", "https://App.example.com", "https://a:443"]
    {
        assert!(origins(wrong).is_err(), "{wrong:?}");
    }
    let line = only_flaw(&set("server.cors_origins", "https://a.example/x"));
    assert!(line.ends_with("its entry \"https://a.example/x\" must be written \"https://a.example\""), "{line}");
}

#[test]
fn callback_secrets_are_those_of_standard_webhooks() {
    assert!(load(&set("callbacks.push.secrets", WEBHOOK_SECRET)).is_ok());
    for wrong in ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_c2hvcnQ=", "whsec_!!!"] {
        let sources = Sources::of_toml(&format!("callbacks.push.secrets = ['{wrong}']"));
        assert!(load(&sources).is_err(), "{wrong:?}");
    }
}

#[test]
fn keys_that_do_not_go_together_are_refused_with_both_places() {
    let mut sources = Sources::of_toml("limits.payload_bytes = 100_000");
    sources.flags = vec![Flag::set("stream.queue_bytes", "100000")];
    assert_eq!(
        only_flaw(&sources),
        "a message of `limits.payload_bytes` (100000, herenow.toml:1:24) and 4096 bytes around it must fit into \
         `stream.queue_bytes` (100000, --set stream.queue_bytes)"
    );
    assert!(only_flaw(&set("server.admin_listen", "127.0.0.1:8080")).contains("can't be the same"));
    let free = Sources::of_toml("server.listen = '127.0.0.1:0'\nserver.admin_listen = '127.0.0.1:0'");
    assert!(load(&free).is_ok());
}

#[test]
fn a_callback_to_a_denied_address_is_refused_however_it_is_spelled() {
    for host in
        ["169.254.169.254", "0xa9fea9fe", "2852039166", "[::ffff:169.254.169.254]", "[fe80::1]", "[fd00:ec2::254]"]
    {
        let line = only_flaw(&set("callbacks.storage.url", &format!("http://{host}/x")));
        assert!(line.starts_with("--set callbacks.storage.url: `callbacks.storage.url` leads to"), "{line}");
    }
    for host in ["127.0.0.1", "10.1.2.3", "example.com"] {
        assert!(load(&set("callbacks.storage.url", &format!("http://{host}/x"))).is_ok(), "{host}");
    }
}

#[test]
fn the_report_names_every_key_its_value_and_its_place_and_masks_secrets() {
    let mut sources = Sources::of_toml("[auth]\napi_keys = ['hunter2', 'hunter3']\n");
    sources.env = env(&[("HERENOW_SERVER__DRAIN_S", "7")]).env;
    sources.flags = vec![
        Flag::named("--listen", "server.listen", "0.0.0.0:80"),
        Flag::set("callbacks.push.url", "https://me:hunter2@example.com/hook?token=hunter2"),
        Flag::set("callbacks.push.secrets", WEBHOOK_SECRET),
    ];
    let loaded = load(&sources).unwrap();
    let report = loaded.report();
    assert_eq!(report.lines().count(), KEYS.len());
    let line = |key: &str| {
        let line = report.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("server.listen"), "server.listen = \"0.0.0.0:80\" # --listen");
    assert_eq!(line("server.drain_s"), "server.drain_s = 7 # HERENOW_SERVER__DRAIN_S");
    assert_eq!(line("auth.api_keys"), "auth.api_keys = [\"***\", \"***\"] # herenow.toml:2:12");
    assert_eq!(line("auth.device_secrets"), "auth.device_secrets = [] # default: made on the first start");
    assert_eq!(line("store.inbox_max"), "store.inbox_max = 10000 # default");
    assert_eq!(
        line("callbacks.push.url"),
        "callbacks.push.url = \"https://***@example.com/hook?***\" # --set callbacks.push.url"
    );
    for hidden in ["hunter", WEBHOOK_SECRET, &format!("{:?}", loaded.config.auth)] {
        assert!(!report.contains(hidden), "{hidden}");
    }
    assert!(toml::from_str::<toml::Table>(&report).is_ok(), "what is reported can be put into a file");
}

#[test]
fn the_keys_of_the_planes_fit_together() {
    let both = "redis.url = 'rediss://u:hunter2@h/0?x=hunter2'\nstore.url = 'postgres://h,i/d'\n";
    let report = load(&Sources::of_toml(both)).unwrap().report();
    assert!(
        report.contains("redis.url = \"rediss://***@h/0?***\"") && report.contains("\"postgres://h,i/d\""),
        "{report}"
    );
    for (text, told) in [
        ("redis.url = 'redis://h'", "needs `store.url`"),
        ("redis.url = 'http://h'", "must be a `redis://` or `rediss://` URL"),
        ("redis.url = 'redis://h'\nredis.mode = 'sentinel'\nstore.url = 'postgres://h/d'", "go together"),
        ("redis.url = 'redis://h'\nredis.nodes = ['a:1']\nstore.url = 'postgres://h/d'", "`redis.nodes` is for"),
        ("redis.nodes = ['a']", "has no port"),
        ("redis.prefix = '{x}'", "must be 1 to 64 letters"),
    ] {
        let line = only_flaw(&Sources::of_toml(text));
        assert!(line.contains(told), "{text:?} gave {line:?}");
    }
    assert!(flaws(&Sources::of_toml("redis.url = 'redis://h'\ncluster.single_node = true")).is_empty());
    assert_eq!(load(&set("store.url", "postgres://h/d")).unwrap().warnings.len(), 1);
}

#[test]
fn short_device_secrets_are_warned_of() {
    assert_eq!(load(&set("auth.device_secrets", "short")).unwrap().warnings.len(), 1);
    assert!(load(&set("auth.device_secrets", &"x".repeat(32))).unwrap().warnings.is_empty());
}

#[test]
fn what_kubernetes_sets_beside_a_service_named_herenow_is_no_key() {
    let links = [
        ("HERENOW_SERVICE_HOST", "10.0.0.1"),
        ("HERENOW_SERVICE_PORT", "8080"),
        ("HERENOW_SERVICE_PORT_HTTP", "8080"),
        ("HERENOW_PORT", "tcp://10.0.0.1:8080"),
        ("HERENOW_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("HERENOW_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("HERENOW_ADMIN_PORT_9090_TCP_PROTO", "tcp"),
    ];
    assert!(flaws(&env(&links)).is_empty());
    assert_eq!(flaws(&env(&[("HERENOW_PORT", "8080")])).len(), 1);
}

#[test]
fn the_page_of_the_documentation_holds_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    let page = std::fs::read_to_string(path).unwrap();
    let table = markdown_table();
    assert!(page.contains(&table), "put this into docs/configuration.md:\n\n{table}");
}

#[test]
fn no_two_keys_share_a_name() {
    for (i, key) in KEYS.iter().enumerate() {
        assert_eq!(keys::position(key.name), Some(i));
    }
}

#[test]
fn the_page_of_the_documentation_names_the_keys_that_take_effect_without_a_restart() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md")).unwrap();
    assert!(page.contains(&reloaded_keys()), "put this into docs/configuration.md:\n\n{}", reloaded_keys());
}

#[test]
fn what_is_read_anew_takes_effect_or_waits_for_a_restart() {
    let of = |toml: &str| load(&Sources::of_toml(toml)).unwrap();
    let old = of("auth.api_keys = ['old']\nstream.heartbeat_s = 5\ncallbacks.push.url = 'http://a/'");
    let new = of("auth.api_keys = ['new']\nstream.heartbeat_s = 6\ncallbacks.push.url = 'http://b/'");
    let Reload { effective, changed, at_restart } = old.reload(&new).unwrap();
    assert_eq!(changed, ["auth.api_keys", "callbacks.push.url"]);
    assert_eq!(at_restart, ["stream.heartbeat_s"]);
    assert_eq!(exposed(&effective.config.auth.api_keys), ["new"]);
    assert_eq!(effective.config.callbacks.push.url.as_ref().unwrap().as_str(), "http://b/");
    assert_eq!(effective.config.stream.heartbeat, Duration::from_secs(5));
    // What waits is told as often as it is read, what took effect once.
    let again = effective.reload(&new).unwrap();
    assert_eq!((again.changed, again.at_restart), (vec![], vec!["stream.heartbeat_s"]));
    let back = effective.reload(&old).unwrap();
    assert_eq!((back.changed.len(), back.at_restart), (2, vec![]));
}

#[test]
fn every_key_is_compared_and_taken_over() {
    let given = "data_dir = 'x'\nstore.inbox_max = 5\nauth.audience = 'a'\nserver.cors_origins = ['https://a.example']";
    let (old, new) = (load(&Sources::default()).unwrap(), load(&Sources::of_toml(given)).unwrap());
    for key in KEYS {
        let (mut a, mut b) = (old.config.clone(), new.config.clone());
        let is_given =
            ["data_dir", "store.inbox_max", "auth.audience", "server.cors_origins", "cluster.node"].contains(&key.name);
        assert_eq!(key.slot.is_same(&mut a, &mut b), !is_given, "{}", key.name);
        key.slot.copy(&mut b, &mut a);
        assert!(key.slot.is_same(&mut a, &mut b), "{}", key.name);
    }
    // The node's name is another at each start; nobody has changed it.
    assert!(old.reload(&load(&Sources::default()).unwrap()).unwrap().at_restart.is_empty());
}

#[test]
fn an_endpoint_comes_and_goes_with_all_its_keys() {
    let none = load(&Sources::default()).unwrap();
    let toml = format!("callbacks.push.url = 'http://a/'\ncallbacks.push.secrets = ['{WEBHOOK_SECRET}']");
    let some = load(&Sources::of_toml(&toml)).unwrap();
    for (old, new) in [(&none, &some), (&some, &none)] {
        let Reload { effective, changed, at_restart } = old.reload(new).unwrap();
        assert_eq!((changed, at_restart), (vec!["callbacks.push.url", "callbacks.push.secrets"], vec![]));
        assert_eq!(effective.config.callbacks.push.url, new.config.callbacks.push.url);
        assert_eq!(effective.config.callbacks.push.secrets, new.config.callbacks.push.secrets);
    }
}

#[test]
fn what_is_in_force_and_what_is_new_must_fit_together() {
    let old = load(&Sources::default()).unwrap();
    let new = load(&Sources::of_toml("limits.payload_bytes = 2000000\nstream.queue_bytes = 3000000")).unwrap();
    let told = old.reload(&new).unwrap_err().to_string();
    assert!(told.contains("`stream.queue_bytes` (1048576, default)"), "{told}");
}
