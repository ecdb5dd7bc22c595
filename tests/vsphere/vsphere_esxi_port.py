"""A VM's network serial port as an ESXi host drives it: dials the concentrator, says for whom, moves by vMotion.

port = EsxiPort("127.0.0.1", 2377, "vch://TOKEN", vc_uuid, "web-1234")
await port.open()                   # Refused when the concentrator will not carry it
port.write(b"from the VM's UART"); await port.drain()
data = await port.read()            # for the VM's UART; b"" when the connection has ended
port = await port.vmotion()         # the same VM on another host; the old connection is closed
await port.close()
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl

from portlayer.drivers.vsphere.serial.conversation import Agreed, Conversation, Proxying
from portlayer.drivers.vsphere.serial.extension import Code, Message, Role, do_proxy
from portlayer.drivers.vsphere.serial.telnet import Data

KNOWN = frozenset(Code)
_BUFFER = 1 << 20


class Refused(Exception):
    """The concentrator will not carry the port, or hung up while it was asked."""


def vmx_uuid(vc_uuid: str) -> str:
    """A UUID as hosts write it: "50 2c 1a 00 35 6f 2b 8d-90 ..."."""
    digits = vc_uuid.replace("-", "")
    pairs = [digits[i : i + 2] for i in range(0, 32, 2)]
    return " ".join(pairs[:8]) + "-" + " ".join(pairs[8:])


class EsxiPort:
    """See the module's docstring. `knows` are the messages that this host has heard of."""

    def __init__(
        self,
        host: str,
        port: int,
        service_uri: str,
        vc_uuid: str | None,
        name: str,
        *,
        tls: ssl.SSLContext | None = None,
        knows: frozenset[Code] = KNOWN,
    ) -> None:
        self._where = (host, port)
        self._tls = tls
        self._service_uri = service_uri
        self._vc_uuid = vc_uuid
        self._name = name
        self._knows = knows
        self.conversation = Conversation(Role.VM)
        self._answers: asyncio.Queue[Message | None] = asyncio.Queue()
        self._received = bytearray()
        self._ended = False
        self._changed = asyncio.Condition()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._agreed = asyncio.Event()

    # --- dialling

    async def dial(self) -> None:
        """Connects and agrees on the extension; who it is has not been said yet."""
        self._reader, self._writer = await asyncio.open_connection(*self._where, ssl=self._tls)
        self._task = asyncio.create_task(self._run(self._reader))
        self._flush()
        await self._agreed.wait()
        if self._ended:
            raise Refused("the concentrator hung up")
        self.send(Message(Code.KNOWN_SUBOPTIONS_1, bytes(sorted(self._knows))))

    async def open(self) -> None:
        """Connects and asks to be carried. Raises Refused."""
        try:
            await self.dial()
            self.send(do_proxy("C", self._service_uri))
            await self._answer(Code.WILL_PROXY)
        except Refused:
            await self.close()
            raise

    async def close(self) -> None:
        """Ends the connection, after what was written."""
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        if self._task is not None:
            await self._task

    async def kill(self) -> None:
        """Ends the connection without a word to anybody, as a host does that loses power (and is told of it)."""
        assert self._writer is not None
        self._writer.transport.abort()
        await self.close()

    # --- the UART

    def write(self, data: bytes) -> None:
        """Bytes from the VM."""
        self.conversation.send_data(data)
        self._flush()

    async def drain(self) -> None:
        """Waits until the concentrator takes more."""
        assert self._writer is not None
        await self._writer.drain()

    async def read(self) -> bytes:
        """Bytes for the VM, as soon as there are any; none when the connection has ended."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._received or self._ended)
            data = bytes(self._received)
            self._received.clear()
            self._changed.notify_all()
            return data

    async def read_exactly(self, count: int) -> bytes:
        """So many bytes for the VM, and no more."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._received) >= count or self._ended)
            data = bytes(self._received[:count])
            del self._received[:count]
            self._changed.notify_all()
            return data

    # --- vMotion

    async def begin(self, sequence: bytes | None = None) -> Message:
        """The source's BEGIN; the answer is GOAHEAD with a cookie or NOTNOW."""
        self.send(Message(Code.VMOTION_BEGIN, sequence or secrets.token_bytes(4)))
        return await self._answer(Code.VMOTION_GOAHEAD, Code.VMOTION_NOTNOW)

    def twin(self) -> EsxiPort:
        """The same VM's port on another host, which has not dialled yet."""
        host, port = self._where
        return EsxiPort(host, port, self._service_uri, self._vc_uuid, self._name, tls=self._tls, knows=self._knows)

    async def present(self, cookie: bytes) -> None:
        """The destination's PEER. Raises Refused."""
        self.send(Message(Code.VMOTION_PEER, cookie))
        await self._answer(Code.VMOTION_PEER_OK)

    async def vmotion(self) -> EsxiPort:
        """Moves; returns the port at the destination, whose bytes arrive after all that was written here."""
        answer = await self.begin()
        if answer.code is not Code.VMOTION_GOAHEAD:
            raise Refused(answer.code.name)
        destination = self.twin()
        await destination.open()
        await destination.present(answer.body)
        destination.send(Message(Code.VMOTION_COMPLETE))
        await self.close()
        return destination

    # --- the connection

    def send(self, message: Message) -> None:
        """Sends any message."""
        self.conversation.send(message)
        self._flush()

    def send_raw(self, data: bytes) -> None:
        """Sends bytes that may mean anything."""
        assert self._writer is not None
        self._writer.write(data)

    async def _answer(self, *codes: Code) -> Message:
        while (message := await self._answers.get()) is not None:
            if message.code in codes:
                return message
            if message.code in (Code.WONT_PROXY, Code.UNKNOWN_SUBOPTION_RCVD_2):
                raise Refused(message.code.name)
        raise Refused("the concentrator hung up")

    def _flush(self) -> None:
        data = self.conversation.data_to_send()
        if data and self._writer is not None and not self._writer.is_closing():
            self._writer.write(data)

    async def _run(self, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(65536):
                for event in self.conversation.receive_data(data):
                    if isinstance(event, Data):
                        await self._take(event.data)
                    elif isinstance(event, Agreed):
                        self._agreed.set()
                    else:
                        self._identify(event)
                        self._answers.put_nowait(event)
                self._flush()
        except ConnectionError:
            pass
        finally:
            self._ended = True
            self._agreed.set()
            self._answers.put_nowait(None)
            async with self._changed:
                self._changed.notify_all()

    async def _take(self, data: bytes) -> None:
        assert self.conversation.proxying is Proxying.CARRYING, "serial bytes before WILL_PROXY"
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._received) < _BUFFER or self._is_closing())
            self._received += data
            self._changed.notify_all()

    def _is_closing(self) -> bool:
        return self._writer is None or self._writer.is_closing()

    def _identify(self, message: Message) -> None:
        if message.code is Code.GET_VM_VC_UUID:
            self.send(Message(Code.VM_VC_UUID, vmx_uuid(self._vc_uuid).encode() if self._vc_uuid else b""))
        elif message.code is Code.GET_VM_NAME:
            self.send(Message(Code.VM_NAME, self._name.encode()))
