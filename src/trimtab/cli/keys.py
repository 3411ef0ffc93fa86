"""`trimtab keys`: make API keys for clients."""

from __future__ import annotations

import click


@click.group()
def keys() -> None:
    """Make API keys for your clients.

    With a key in the configuration every request needs one. The key names the tenant that pays, and only its hash is
    stored.
    """


@keys.command()
@click.option("--tenant", required=True, help="Who pays: a customer, team or application, as the ledger will show it.")
@click.option("--name", default="", help="The key's name in the configuration. [default: the tenant and 6 hex digits]")
@click.option("--route", "routes", multiple=True, help="A route that the key may use; repeat for more. [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def new(tenant: str, name: str, routes: tuple[str, ...], as_json: bool) -> None:
    """Make an API key: print the secret, once, and the lines to paste into trimtab.toml.

    \b
    Examples:
      trimtab keys new --tenant acme
      trimtab keys new --tenant acme --name acme-batch --route batch
    """
    from trimtab.config import NAME_RULE, hash_key, is_name, new_key, to_toml

    secret = new_key()
    hashed = hash_key(secret)
    name = name or f"{tenant[:57]}-{hashed[7:13]}"
    for option, text in (("--tenant", tenant), ("--name", name), *(("--route", route) for route in routes)):
        if not is_name(text):
            raise click.BadParameter(f"{text!r}: use {NAME_RULE}", param_hint=option)
    table = {"hash": hashed, "tenant": tenant, **({"routes": list(routes)} if routes else {})}
    pasted = to_toml({"keys": {name: table}})
    if as_json:
        import msgspec

        found = {"name": name, "secret": secret, **table, "toml": pasted}
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    click.echo(f"# The API key for {tenant}. It is shown only now; hand it to the client and keep no copy:\n")
    click.echo(f"{secret}\n")
    click.echo("# Paste this into trimtab.toml, then reload or restart the gateway:\n")
    click.echo(pasted, nl=False)
