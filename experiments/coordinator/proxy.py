"""The reverse proxy: nginx ends TLS on host:port and forwards nine paths of Flower's fleet API, and nothing else.

The SuperLink behind it listens on the loopback alone, because the open-source SuperLink asks nobody who they are
on its control and runtime APIs. `nginx.conf` is written at each `start`, to be read; another proxy may take its
place if it forwards exactly `FORWARDED` (docs/coordinator.md).
"""

import grp
import os
import pwd
import shutil
import subprocess
from pathlib import Path

from experiments.coordinator.folder import CoordinatorError, CoordinatorFile, Folder, at, write_whole

FLEET = "/v1/fleet/"
FORWARDED = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "pull-object",
    "confirm-message-received",
    "push-messages",
    "push-object",
    "get-run",
)  # not register-node, unregister-node (enrolment is the coordinator's) nor get-fab (a node runs what IT installed)
SIGNATURE = "flwr-signature"
NO_NGINX = (
    "nginx is not installed: `apt install nginx-light` (or dnf, brew), or let a proxy of your own forward "
    "(docs/coordinator.md)"
)

CONFIGURATION = """\
# Written by `fedrisk coordinator start`; change coordinator.toml instead.
# TLS ends here. Only what a hosted node needs is forwarded to the SuperLink on this machine's loopback.
{user}daemon off;
pid {folder}/run/nginx.pid;
error_log {folder}/log/proxy-error.log crit;  # lower levels quote requests
worker_processes 2;
events {{ worker_connections 1024; }}

http {{
    server_tokens off;
    default_type text/plain;
    log_format plain '$time_iso8601 $remote_addr $request_method $uri $status $body_bytes_sent $request_time';
    access_log {folder}/log/proxy-access.log plain;  # $uri: without a query
    client_body_temp_path {folder}/run/body;
    proxy_temp_path {folder}/run/proxy;
    fastcgi_temp_path {folder}/run/fastcgi;
    uwsgi_temp_path {folder}/run/uwsgi;
    scgi_temp_path {folder}/run/scgi;

    client_header_timeout 15s;
    client_body_timeout 30s;
    send_timeout 30s;
    keepalive_timeout 75s;
    client_header_buffer_size 2k;
    large_client_header_buffers 4 8k;
    limit_conn_zone $binary_remote_addr zone=caller:1m;
    limit_conn caller 64;
    limit_conn_status 429;

    map $uri $forwarded {{
        default "";
{paths}    }}

    upstream superlink {{
        server 127.0.0.1:{superlink_port};
        keepalive 32;
        keepalive_timeout 3s;  # less than the SuperLink's own, so no request meets a line that is being closed
    }}

    server {{
        listen {listen} ssl;
        server_name _;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_ciphers ECDHE+AESGCM:ECDHE+CHACHA20;
        ssl_session_cache shared:tls:1m;
        ssl_session_tickets off;
        error_page 497 = @plaintext;  # HTTP on the port of HTTPS

        location = {fleet_bare} {{ return 404; }}  # else nginx would redirect it
        location {fleet} {{
            if ($forwarded = "") {{ return 404; }}
            if ($request_method != POST) {{ return 404; }}
            if ($http_flwr_signature = "") {{ return 401; }}
            client_max_body_size {body}m;
            proxy_pass https://superlink$forwarded;  # no part of it is the caller's
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host localhost;
            proxy_ssl_name localhost;
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate {folder}/tls/loopback-ca.crt;
            proxy_request_buffering off;
            proxy_max_temp_file_size 0;
            proxy_connect_timeout 5s;
            proxy_send_timeout 60s;
            proxy_read_timeout 60s;
            proxy_next_upstream off;
        }}
        location / {{ return 404; }}
        location @plaintext {{ return 444; }}
    }}
}}
"""


def find_nginx() -> str | None:
    """nginx, also where a user's PATH leaves out the system's folders; None where there is none."""
    return shutil.which(
        "nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    )


def configure(folder: Folder, settings: CoordinatorFile, superlink_port: int) -> Path:
    """Write nginx.conf for a SuperLink on `superlink_port`."""
    names = [f"{FLEET}{name}" for name in FORWARDED]
    text = CONFIGURATION.format(
        user=_user(),
        folder=usable(folder.path),
        paths="".join(f'        "{name}" "{name}";\n' for name in names),
        superlink_port=superlink_port,
        listen=at(settings.listen, settings.port),
        certificate=usable(folder.at(settings.certificate)),
        key=usable(folder.at(settings.key)),
        fleet=FLEET,
        fleet_bare=FLEET.rstrip("/"),
        body=settings.max_body_mb,
    )
    write_whole(folder.at("nginx.conf"), text.encode(), mode=0o600)
    folder.at("run").mkdir(mode=0o700, exist_ok=True)
    return folder.at("nginx.conf")


def command(folder: Folder) -> list[str]:
    """How nginx is started in the foreground; `CoordinatorError` where it is not installed."""
    nginx = find_nginx()
    if nginx is None:
        raise CoordinatorError(NO_NGINX)
    return [
        nginx,
        "-p",
        str(folder.path),
        "-e",
        str(folder.at("log/proxy-error.log")),
        "-c",
        str(folder.at("nginx.conf")),
    ]


def check(folder: Folder) -> None:
    """nginx's own opinion of nginx.conf, as a `CoordinatorError` where it is not well."""
    done = subprocess.run(
        [*command(folder), "-t", "-q"], capture_output=True, text=True, check=False, timeout=30
    )
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise CoordinatorError(f"nginx refuses {folder.at('nginx.conf')}: {why}")


def _user() -> str:
    """Workers that are nobody, where the master is root; else nginx must not be told."""
    if os.geteuid() != 0:
        return ""
    nobody = pwd.getpwnam("nobody")
    return f"user nobody {grp.getgrgid(nobody.pw_gid).gr_name};\n"


def usable(path: Path) -> str:
    """A path as nginx takes it; `CoordinatorError` for one that it would read as something else."""
    text = str(path)
    if any(letter in text for letter in "\"'$;{}\\\n #"):
        raise CoordinatorError(
            f"{text} has a space, a quote or one of $ ; {{ }} # \\ in its name, which nginx reads otherwise: use another folder"
        )
    return text
