"""Tiny self-supervised networks with random weights, in the formats of s3prl and of Hugging Face."""

from dataclasses import asdict, replace

import pytest
import torch

from wedefense_nb.features.pretrained import TINY

QUIET_S3PRL = [  # its own warnings, for the tests that run it
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning"),
]

# Options that make each SSL back end small: a tiny upstream with random weights, without dropout or layer drop.
STILL = {"upstream": asdict(replace(TINY, dropout=0.0, attention_dropout=0.0, layerdrop=0.0))}
SSL = {
    "ssl_linear": STILL,
    "ssl_mhfa": STILL,
    "ssl_sls": STILL,
    "ssl_res1d": STILL,
    "ssl_nes2net": STILL | {"groups": 4, "inner": 4},
    "ssl_nes2net_x": STILL | {"groups": 4, "inner": 4},
    "ssl_aasist": STILL,
    "ssl_gmlp": STILL | {"scale": 2, "dropout": 0.1},
}

CONV = "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2"
SHAPE = dict(
    encoder_layers=2, encoder_embed_dim=32, encoder_ffn_embed_dim=64, encoder_attention_heads=4,
    conv_feature_layers=CONV, conv_pos=16, conv_pos_groups=4,
)  # fmt: skip
BASE = dict(extractor_mode="default", layer_norm_first=False, conv_bias=False)
LARGE = dict(extractor_mode="layer_norm", layer_norm_first=True, conv_bias=True)
SSL_FAMILIES = (
    "wav2vec2_base",
    "wav2vec2_large",
    "hubert_base",
    "hubert_large",
    "data2vec",
    "wavlm_base",
    "wavlm_large",
    "sat",
)


def shake(model):
    """Random values everywhere, also where fresh networks have ones and zeros, so that no weight can hide."""
    torch.manual_seed(7)
    for name, p in model.named_parameters():
        p.data = p.data + 0.1 * torch.randn_like(p) if p.ndim < 2 or "norm" in name else p.data * 3
    return model


def s3prl_file(family: str, path):
    """Write a converted checkpoint of s3prl and return its path."""
    torch.manual_seed(0)
    kind = LARGE if family.endswith("large") else BASE
    cfg = SHAPE | kind
    task = dict(sample_rate=16000, normalize=kind is LARGE)
    if family.startswith("wav2vec2"):
        from s3prl.upstream.wav2vec2.wav2vec2_model import Wav2Vec2Config, Wav2Vec2Model

        cfg |= dict(final_dim=8, quantize_targets=True, latent_vars=4, latent_groups=2)
        state = dict(model_weight=shake(Wav2Vec2Model(Wav2Vec2Config(**cfg))).state_dict())
    elif family.startswith("hubert"):
        from s3prl.upstream.hubert.hubert_model import HubertConfig, HubertModel, HubertPretrainingConfig

        symbols = [[str(i) for i in range(10)]]
        task = task | dict(label_rate=50.0)
        cfg |= dict(final_dim=8, label_rate=50.0)
        model = HubertModel(HubertConfig(**cfg), HubertPretrainingConfig(**task), symbols)
        state = dict(model_weight=shake(model).state_dict(), dictionaries_symbols=symbols)
    elif family == "data2vec":
        from s3prl.upstream.data2vec.data2vec_model import Data2VecAudioConfig, Data2VecAudioModel

        cfg = cfg | dict(extractor_mode="layer_norm", conv_pos=95, pos_conv_depth=5)
        task = task | dict(normalize=True)
        model = Data2VecAudioModel(Data2VecAudioConfig(**cfg))
        model.remove_pretraining_modules()
        state = dict(model_weight=torch.nn.Module.state_dict(shake(model)) | {"_ema": {}})
    else:
        from s3prl.upstream.wavlm.WavLM import WavLM, WavLMConfig

        relative = dict(relative_position_embedding=True, num_buckets=32, max_distance=80, gru_rel_pos=True)
        cfg |= relative if "wavlm" in family else {}
        cfg |= dict(normalize=kind is LARGE)
        torch.save(dict(cfg=cfg, model=shake(WavLM(WavLMConfig(cfg))).state_dict()), path)
        return path
    torch.save(dict(task_cfg=task, model_cfg=cfg) | state, path)
    return path


HF_LARGE = dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
HF_MODELS = {"Wav2Vec2": {}, "Hubert": HF_LARGE, "WavLM": {}, "Data2VecAudio": {}, "UniSpeechSat": HF_LARGE}


def hf_folder(kind: str, folder, normalize: bool = True):
    """Write a model folder of Hugging Face and return the model."""
    import transformers

    torch.manual_seed(0)
    pos = {} if kind == "Data2VecAudio" else dict(num_conv_pos_embeddings=16)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=[16] * 7,
        num_conv_pos_embedding_groups=4,
        **pos,
        **HF_MODELS[kind],
    )
    model = shake(getattr(transformers, f"{kind}Model")(config)).eval()
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(folder)
    return model
