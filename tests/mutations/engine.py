"""Lines of the engine, the next-token view and text as it comes."""

ENGINE, NEXT, TEXT = (f"rlhf_kit/generation/{name}.py" for name in ("engine", "next_token", "text"))
READING, CACHE = "rlhf_kit/generation/reading.py", "rlhf_kit/generation/cache.py"
ENGINE_TEST, NEXT_TEST = "tests/generation/test_engine.py::", "tests/generation/test_next_token.py::"
ALONE = ENGINE_TEST + "test_each_gets_what_it_has_alone_whenever_it_comes"
LIKELIEST = NEXT_TEST + "test_candidates_are_the_likeliest_whole_characters_and_sum_with_the_rest_to_1"

MUTANTS = [
    (ENGINE, "float(job.uniforms[job.drawn])", "float(job.uniforms[0])", ALONE + "[gpt2]"),
    (ENGINE, "        self.settings = _Settings(self.jobs)\n        prompts", "        prompts", ALONE + "[llama]"),
    (ENGINE, "engine.take(engine.slots - len(jobs) + len(ended))", "engine.take(len(ended))",
     ENGINE_TEST + "test_a_new_row_does_not_wait_for_the_others_and_the_batch_shrinks_again"),
    (ENGINE, "            if self.waiting >= self.most_waiting:", "            if False:",
     ENGINE_TEST + "test_a_line_has_an_end"),
    (ENGINE, "        finally:\n            job.cancel()", "        finally:\n            pass",
     ENGINE_TEST + "test_who_leaves_leaves_no_work"),
    (ENGINE, "                if not job.is_cancelled:", "                if True:",
     ENGINE_TEST + "test_who_leaves_the_line_never_begins"),
    (ENGINE, "    except Exception:  # who asked has gone\n        job.cancel()",
     "    except Exception:\n        pass",
     ENGINE_TEST + "test_one_who_does_not_take_it_is_left"),
    ("rlhf_kit/generation/drawn.py", "(logits.gather(1, chosen) - totals)", "logits.gather(1, chosen)",
     ENGINE_TEST + "test_what_is_told_of_a_token_is_of_the_model_itself"),
    ("rlhf_kit/generation/prompt_logprobs.py", "logits[: len(row) - 1].split(PLACES)",
     "logits[: len(row) - 1].float().split(PLACES)",
     "tests/generation/test_prompt_logprobs.py::test_a_long_prompt_takes_no_more_memory_than_a_part_of_it"),
    (ENGINE, "            _told(job, Closed(", "            (lambda *_: 0)(job, Closed(",
     ENGINE_TEST + "test_closing_tells_those_at_work_and_those_in_line"),
    (READING, "        if (more := int(places.max()) + 1 - len(self.lengths)) > 0:\n            self._add(more)",
     "        self._add(max(0, int(places.max()) - len(self.lengths)))", ALONE + "[gpt2]"),
    (NEXT, "            if len(found) == count or text and unfinished:", "            if len(found) == count:",
     LIKELIEST),
    (NEXT, "                rest.append(probability * others.item())", "                pass",
     NEXT_TEST + "test_what_is_not_looked_at_is_in_the_rest"),
    (TEXT, "return \"\" if is_unfinished else self._released(self._taken(new))",
     "return self._released(self._taken(new))",
     NEXT_TEST + "test_a_stream_gives_the_text_in_whole_characters"),
    (TEXT, "        self.held = text[len(text) - longest :]\n        return text[: len(text) - longest]",
     "        return text", NEXT_TEST + "test_nothing_of_a_stop_string_is_given[stop1]"),
    ("rlhf_kit/chat/speakers.py", "        text = text if self.begun else text.lstrip()", "        pass",
     "tests/chat/test_speakers.py::test_an_answer_in_turns_begins_without_white_space"),
    ("rlhf_kit/chat/speakers.py", "loading.submit(self._load, name).result()", "self._load(name)",
     "tests/chat/test_speakers.py::test_the_thread_that_loads_a_model_ends"),
    ("rlhf_kit/chat/speakers.py", "            self._loaded.move_to_end(name)", "            pass",
     "tests/chat/test_speakers.py::test_models_are_loaded_when_asked_for_and_the_one_longest_unused_is_let_go"),
]  # fmt: skip
