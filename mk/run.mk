# Running, installing, cleaning.
.PHONY: format clean
format:
	clang-format-19 -i $$(git ls-files '*.c' '*.h')

clean:
	rm -rf $(BUILD)
