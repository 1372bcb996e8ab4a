//! The unit, the image and the manifest, as far as they can be tried without systemd, Docker and a cluster: what they
//! start is started, and what they say is compared with what the relay does.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use outbox_tests::database::{Kind, TestDatabase};
use outbox_tests::process::{Process, free_address, relay, relay_path};
use relay::config::{Config, Scope, Sources};
use serde_json::{Value, json};

use super::{LIMIT, file, folder, python};

const BINARY: &str = "/usr/local/bin/relay";

/// A file of systemd's: what is said under `section.key`, in its order.
fn unit() -> HashMap<String, Vec<String>> {
    let mut said: HashMap<String, Vec<String>> = HashMap::new();
    let mut section = String::new();
    for line in file("sidecar/outbox-relay.service").lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            said.entry(format!("{section}.{key}")).or_default().push(value.to_owned());
        }
    }
    said
}

/// The documents of the manifest.
fn manifest() -> Vec<Value> {
    let mut convert = python("yaml");
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    convert.args(["-c", script]).arg(folder("sidecar/kubernetes.yaml"));
    let ended = Process::run(convert, LIMIT);
    assert!(ended.status.success(), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}

fn document<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    documents.iter().find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

/// The `relay.toml` in the manifest.
fn kubernetes_configuration() -> String {
    document(&manifest(), "ConfigMap")["data"]["relay.toml"].as_str().unwrap().to_owned()
}

/// The same configuration where the file of the secret is one that exists here, holding this url.
pub(super) fn with_secret(configuration: &str, folder: &Path, url: &str) -> String {
    let secret = folder.join("database-url");
    // With the line break an editor leaves.
    std::fs::write(&secret, format!("{url}\n")).unwrap();
    let (before, rest) = configuration.split_once("{ file = \"").expect("the url is a secret in a file");
    let (_, after) = rest.split_once('"').unwrap();
    format!("{before}{{ file = \"{}\"{after}", secret.display())
}

/// What the relay makes of it.
fn loaded(configuration: &str, folder: &Path) -> Config {
    let configuration = with_secret(configuration, folder, "postgres://relay@database/shop");
    let file = Some((folder.join("relay.toml"), configuration));
    let sources = Sources { file, database_url: None, host: None, environment: BTreeMap::new() };
    Config::load(&sources, Scope::Everything).unwrap_or_else(|error| panic!("{:?}", error.problems))
}

/// The longest a relay takes to end: its grace, then two times it waits for the database at most a lease.
fn longest_stop(config: &Config) -> Duration {
    config.relay.shutdown_grace + 2 * config.relay.lease
}

/// A span as systemd and Docker write it here.
fn secs(text: &str) -> Duration {
    Duration::from_secs(text.trim_end_matches('s').parse().unwrap_or_else(|_| panic!("`{text}` is no seconds")))
}

/// Starts the relay with these arguments, its configuration where they say it is, and sees it start, ready, and end.
fn runs(arguments: &[String], configuration: &str, health: SocketAddr) {
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    std::fs::write(&path, with_secret(configuration, folder.path(), database.url())).unwrap();
    let here = |argument: &String| {
        if argument.ends_with("/relay.toml") { path.display().to_string() } else { argument.clone() }
    };
    let mut command = relay(arguments.iter().map(here));
    command.current_dir("/").env("RELAY__HEALTH__LISTEN", health.to_string());
    let mut process = Process::start(command);
    process.wait_for_200(health, "/livez", LIMIT);
    process.wait_for_200(health, "/readyz", LIMIT);
    let ended = process.terminate(LIMIT);
    assert!(ended.status.success(), "{ended:?}");
}

#[test]
fn unit_starts_the_relay_and_waits_long_enough_for_its_end() {
    let unit = unit();
    let [start] = &unit["Service.ExecStart"][..] else { panic!("{unit:?}") };
    let words: Vec<String> = start.split(' ').map(str::to_owned).collect();
    assert_eq!(words[..3], [BINARY, "-c", "/etc/outbox-relay/relay.toml"]);
    let configuration = file("sidecar/relay.toml");
    runs(&words[1..], &configuration, free_address());

    let folder = tempfile::tempdir().unwrap();
    let config = loaded(&configuration, folder.path());
    assert!(secs(&unit["Service.TimeoutStopSec"][0]) > longest_stop(&config));
    // The credential is where the configuration looks for it.
    let [credential] = &unit["Service.LoadCredential"][..] else { panic!("{unit:?}") };
    let name = credential.split(':').next().unwrap();
    assert!(configuration.contains(&format!("/run/credentials/outbox-relay.service/{name}")));
}

#[test]
fn unit_locks_the_relay_in_and_keeps_it_running() {
    let unit = unit();
    for (key, value) in [
        ("Unit.StartLimitIntervalSec", "0"),
        ("Service.Restart", "always"),
        ("Service.DynamicUser", "yes"),
        ("Service.NoNewPrivileges", "yes"),
        ("Service.ProtectSystem", "strict"),
        ("Service.ProtectHome", "yes"),
        ("Service.CapabilityBoundingSet", ""),
    ] {
        assert_eq!(unit.get(key).map(Vec::as_slice), Some(&[value.to_owned()][..]), "{key}");
    }
    // Whether systemd knows all the rest, it says itself where it is installed.
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("outbox-relay.service");
    let text = file("sidecar/outbox-relay.service").replace(BINARY, &relay_path().display().to_string());
    std::fs::write(&path, text).unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).arg(&path);
    match verify.output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !said.contains("outbox-relay.service"), "{said}");
        }
        Err(error) => println!("the unit was not verified by systemd-analyze: {error}"),
    }
}

/// The instructions of the Dockerfile, continued lines joined.
fn instructions() -> Vec<(String, String)> {
    let joined = file("sidecar/Dockerfile").replace("\\\n", " ");
    let lines = joined.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').unwrap()).map(|(name, rest)| (name.into(), rest.trim().into())).collect()
}

#[test]
fn image_starts_the_relay_without_a_shell_and_not_as_root() {
    let instructions = instructions();
    let last_stage = instructions.iter().rposition(|(name, _)| name == "FROM").unwrap();
    let (build, image) = instructions.split_at(last_stage);
    let of =
        |name: &str| image.iter().filter(|(known, _)| known == name).map(|(_, rest)| rest.as_str()).collect::<Vec<_>>();
    let list = |name: &str| -> Vec<String> {
        let [text] = of(name)[..] else { panic!("{name}: {image:?}") };
        // Only a list is started without a shell, and only then is the relay process 1.
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{name} {text} is no list: {error}"))
    };
    assert_eq!(list("ENTRYPOINT"), [BINARY]);
    assert_eq!(of("USER"), ["65532:65532"]);
    assert_eq!(of("ENV"), ["RELAY_CONFIG=/etc/relay/relay.toml"]);
    assert_eq!(of("RUN"), [""; 0], "there is no shell to run anything");

    // Its default command, with the configuration where the variable says.
    let database = TestDatabase::with_schema(Kind::Sqlite);
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("relay.toml");
    std::fs::write(&path, "[destinations.billing]\nurl = \"http://127.0.0.1:1/\"\ntopics = [\"order.*\"]\n").unwrap();
    let address = free_address();
    let mut command = relay(list("CMD"));
    command.env("RELAY_CONFIG", &path).env("DATABASE_URL", database.url()).current_dir("/");
    command.env("RELAY__HEALTH__LISTEN", address.to_string());
    let mut process = Process::start(command);
    process.wait_for_200(address, "/readyz", LIMIT);
    assert!(process.terminate(LIMIT).status.success());

    // What is built is what is copied, by the toolchain this project asks for.
    let root = file("../Cargo.toml");
    let version = root.lines().find_map(|line| line.strip_prefix("rust-version = \"")).unwrap().trim_end_matches('"');
    assert!(build[0].1.starts_with(&format!("rust:{version}-")), "{build:?}");
    let run = &build.iter().find(|(name, _)| name == "RUN").unwrap().1;
    assert!(run.ends_with("cargo build --release --locked -p relay && cp target/release/relay /relay"), "{run}");
    assert!(of("COPY").contains(&&*format!("--from=build /relay {BINARY}")), "{image:?}");
    assert!(file("sidecar/Dockerfile.dockerignore").lines().any(|line| line == "target"));
}

#[test]
fn binary_links_nothing_that_the_image_lacks() {
    let mut ldd = Command::new("ldd");
    ldd.arg(relay_path());
    let ended = Process::run(ldd, LIMIT);
    assert!(ended.status.success(), "{ended:?}");
    // What `cc-debian12` is for: the C library and the compiler's.
    let there = ["linux-vdso.so", "libgcc_s.so", "libm.so", "libc.so", "ld-linux"];
    for line in ended.stdout.lines() {
        assert!(there.iter().any(|library| line.contains(library)), "{line}");
    }
}

#[test]
fn manifest_starts_the_relay_as_a_native_sidecar() {
    let documents = manifest();
    let pod = &document(&documents, "Deployment")["spec"]["template"]["spec"];
    let [relay] = &pod["initContainers"].as_array().unwrap()[..] else { panic!("{pod}") };
    assert_eq!(relay["restartPolicy"], "Always", "without it the application would never start");
    let configuration = kubernetes_configuration();
    let arguments: Vec<String> = serde_json::from_value(relay["args"].clone()).unwrap();
    runs(&arguments, &configuration, free_address());

    let place = tempfile::tempdir().unwrap();
    let config = loaded(&configuration, place.path());
    let health = config.health.listen.expect("the probes need it");
    assert!(health.ip().is_unspecified(), "the kubelet asks from outside");
    assert_eq!(relay["ports"][0], json!({"name": "health", "containerPort": health.port()}));
    for (probe, path) in [("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        assert_eq!(relay[probe]["httpGet"], json!({"path": path, "port": "health"}));
    }
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(Duration::from_secs(grace) > longest_stop(&config));

    let security = &relay["securityContext"];
    for (key, value) in [
        ("runAsNonRoot", json!(true)),
        ("runAsUser", json!(65532)),
        ("allowPrivilegeEscalation", json!(false)),
        ("readOnlyRootFilesystem", json!(true)),
        ("capabilities", json!({"drop": ["ALL"]})),
    ] {
        assert_eq!(security[key], value, "{key}");
    }
    let memory = relay["resources"]["limits"]["memory"].as_str().unwrap();
    let memory: u64 = memory.strip_suffix("Mi").unwrap().parse().unwrap();
    assert!(memory << 20 > 2 * config.relay.in_hands_bytes, "{memory}");
}

#[test]
fn manifest_mounts_what_it_reads_and_names_what_it_mounts() {
    let documents = manifest();
    let map = document(&documents, "ConfigMap");
    let deployment = document(&documents, "Deployment");
    let template = &deployment["spec"]["template"];
    assert_eq!(deployment["spec"]["selector"]["matchLabels"], template["metadata"]["labels"]);
    let pod = &template["spec"];
    let relay = &pod["initContainers"][0];
    let mounts: HashMap<&str, &str> = relay["volumeMounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| (mount["name"].as_str().unwrap(), mount["mountPath"].as_str().unwrap()))
        .collect();
    assert_eq!(relay["args"][1], json!(format!("{}/relay.toml", mounts["relay-config"])));
    assert!(kubernetes_configuration().contains(&format!("\"{}/database-url\"", mounts["relay-secrets"])));
    let [config, secrets] = &pod["volumes"].as_array().unwrap()[..] else { panic!("{pod}") };
    assert_eq!((&config["name"], &secrets["name"]), (&json!("relay-config"), &json!("relay-secrets")));
    assert_eq!(config["configMap"]["name"], map["metadata"]["name"]);
    let create = format!("kubectl create secret generic {}", secrets["secret"]["secretName"].as_str().unwrap());
    assert!(file("sidecar/README.md").contains(&create) && file("sidecar/kubernetes.yaml").contains(&create));
    // Readable for the group the relay has, not for everybody.
    assert_eq!(secrets["secret"]["defaultMode"], json!(0o440));
    assert_eq!(pod["securityContext"]["fsGroup"], relay["securityContext"]["runAsGroup"]);
}

#[test]
fn docker_is_told_to_wait_long_enough() {
    let readme = file("sidecar/README.md");
    let told = readme.split_once("--stop-timeout ").unwrap().1.split(' ').next().unwrap();
    let place = tempfile::tempdir().unwrap();
    assert!(secs(told) > longest_stop(&loaded(&file("sidecar/relay.toml"), place.path())));
}
