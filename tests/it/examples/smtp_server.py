"""A real SMTP server that keeps what it gets and answers as the recipient's name asks for.

    smtp_server.py PORT FOLDER     PORT 0: any; prints `listens on PORT`

`busy@` is refused once with 451 and then accepted, `gone@` is refused with 550, `locked@` with 530, and `slow@` is
accepted after the answer has been held back for as long as the server lives.
"""

import asyncio
import pathlib
import sys

from aiosmtpd.smtp import SMTP

REFUSED = {"gone": "550 5.1.1 no such mailbox", "locked": "530 5.7.0 authentication required"}


class Keeper:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.busy = set()
        self.count = 0

    async def handle_RCPT(self, server, session, envelope, address, options):
        name = address.split("@")[0]
        print(f"asked for {name}", flush=True)
        if name in REFUSED:
            return REFUSED[name]
        if name == "busy" and name not in self.busy:
            self.busy.add(name)
            return "451 4.3.2 try again later"
        if name == "slow":
            await asyncio.Event().wait()
        envelope.rcpt_tos.append(address)
        return "250 ok"

    async def handle_DATA(self, server, session, envelope):
        self.count += 1
        (self.folder / f"{self.count}.part").write_bytes(envelope.content)
        (self.folder / f"{self.count}.part").rename(self.folder / f"{self.count}.eml")
        print(f"took mail {self.count} for {envelope.rcpt_tos}", flush=True)
        return "250 taken"


async def main(port, folder):
    keeper = Keeper(folder)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(keeper, loop=loop), "127.0.0.1", int(port))
    print(f"listens on {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


asyncio.run(main(*sys.argv[1:]))
