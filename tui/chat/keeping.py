"""What of a chat goes into the history: the question, the answer that begins, the draft, the branch that is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashmoe.history.records import Attachment, HistoryError, Message
from tui.chat.conversation import Conversation, Turn
from tui.chat.given import Given
from tui.chat.view import FlowView

if TYPE_CHECKING:
    from flashmoe.history import AnswerWriter, History


async def keep_question(
    history: History,
    conversation: Conversation,
    model: str,
    text: str,
    attachments: tuple[Attachment, ...],
    editing: Turn | None,
) -> Message:
    """A question at the end of the path, or beside the one that is edited; an empty chat is kept with its first.

    Raises `HistoryError`.
    """
    if conversation.id is None:
        chat = await history.in_thread(history.create_chat, model=model, settings=conversation.settings)
        conversation.id, conversation.uid = chat.id, chat.uid
        conversation.title = " ".join(text.split())[:60]
    last = conversation.turns[-1].id if conversation.turns else None
    parent = editing.parent_id if editing is not None else last
    return await history.in_thread(
        history.add_message, conversation.id, "user", text, parent_id=parent, attachments=attachments
    )


async def keep_answer(
    history: History, conversation: Conversation, model: str, going_on: Turn | None
) -> tuple[Turn, AnswerWriter]:
    """The turn of an answer that begins, or goes on, and what writes it. Raises `HistoryError`."""
    if going_on is not None:
        writer = await history.in_thread(history.continue_answer, going_on.id)
        going_on.ending = going_on.error = ""
        return going_on, writer
    assert conversation.id is not None
    writer = await history.in_thread(
        history.start_answer, conversation.id, parent_id=conversation.turns[-1].id, model=model
    )
    turn = Turn.of(await history.in_thread(history.message, writer.message_id))
    conversation.turns.append(turn)
    return turn, writer


async def keep_draft(view: FlowView, conversation: Conversation, text: str) -> bool:
    """What stands in the composer stays with its chat, where the chat is kept. False: it doesn't, which was said."""
    if conversation.id is None:
        return True
    history = await view.history()
    try:
        await history.in_thread(history.set_draft, conversation.id, text)
    except HistoryError as error:
        view.say(error.message, "error")
        return False
    return True


async def show_branch(view: FlowView, given: Given, step: int, turn: Turn | None) -> None:
    """Shows the branch `step` away, at `turn` or where the path last has alternatives."""
    conversation = given.conversation
    target = turn if turn is not None and turn.variants > 1 else None
    target = target or conversation.nearest_branching()
    if target is None or conversation.id is None:
        view.say(
            f"There is only one branch; {view.key('chat.regenerate')} regenerates the answer, "
            f"{view.key('chat.edit')} edits the question.",
            "warning",
        )
        return
    if not 1 <= target.variant + step <= target.variants:
        view.say(f"This is the {'first' if step < 0 else 'last'} of {target.variants} branches.")
        return
    history = await view.history()
    await given.take_path(await history.in_thread(history.step_variant, target.id, step))
    await view.show_turns(conversation.turns)


async def show_up_to(view: FlowView, given: Given, question: Turn) -> None:
    """Shows the path up to a question: what came after it stays as a branch."""
    conversation = given.conversation
    if question is conversation.turns[-1] or conversation.id is None:
        return
    history = await view.history()
    await given.take_path(await history.in_thread(history.rewind, question.id, conversation.id))
    await view.show_turns(conversation.turns)


async def show_whole_chat(view: FlowView, given: Given) -> None:
    """Takes back what was left out last on this branch: the model is shown it again."""
    if given.conversation.cut is None:
        view.say("Nothing is left out: the model sees the whole chat.", "warning")
        return
    n = await given.show_all()
    back = f"{n} messages are" if n > 1 else "A message is"
    view.say(f"{back} back in the context; you'll be asked again if the next question doesn't fit.")
